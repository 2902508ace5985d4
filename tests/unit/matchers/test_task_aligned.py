"""Task-aligned matching against the plain re-statement, on matrices worked by hand, and as a stack."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lora_detr.matchers.invariants import check_assignment
from lora_detr.matchers.scores import target_logits
from lora_detr.matchers.task_aligned import TaskAligned, TaskAlignedConfig
from lora_detr.structures import PaddedTargets, Prediction, Target
from tests.reference import task_aligned
from tests.unit.matchers.random_problems import check_stack, thousand_problems

Rows = list[list[float]]
Scores = dict[tuple[int, int], float]


def scores(probability: Rows, overlap: Rows, k: int = 13, alpha: float = 1.0, beta: float = 1.0) -> Scores:
    """Return the published score of each pair."""
    matcher = TaskAligned([k], alpha, beta)
    allowed = torch.ones(1, len(overlap), 1).bool()
    assignment = matcher.assign(torch.tensor([[probability]]), torch.tensor([[overlap]]), allowed)
    pairs = zip(assignment.query[assignment.mask].tolist(), assignment.mask.nonzero()[:, 2].tolist(), strict=True)
    return dict(zip(pairs, assignment.score[assignment.mask].tolist(), strict=True))


@pytest.mark.parametrize(
    ("probability", "overlap", "k", "expected"),
    [
        # m = 0.4, 0.25, 0.06; scaled so that the highest is the highest IoU, 0.8.
        pytest.param(
            [[0.5, 0.5, 0.1]], [[0.8, 0.5, 0.6]], 13, {(0, 0): 0.8, (1, 0): 0.5, (2, 0): 0.12}, id="all that overlap"
        ),
        pytest.param([[0.5, 0.5, 0.1]], [[0.8, 0.5, 0.6]], 2, {(0, 0): 0.8, (1, 0): 0.5}, id="the k best"),
        # m = 0.1, 0.36: the best pair gets the highest IoU, though it is the other's.
        pytest.param([[0.125, 0.6]], [[0.8, 0.6]], 13, {(0, 0): 0.8 * 0.1 / 0.36, (1, 0): 0.8}, id="best m, best IoU"),
        pytest.param([[0.5, 0.5]], [[0.5, 0.5]], 1, {(0, 0): 0.5}, id="of equals the lower query"),
        pytest.param([[0.5, 0.5]], [[0.0, 0.0]], 13, {}, id="IoU 0 everywhere"),
        pytest.param([[0.0, 0.5]], [[0.9, 0.5]], 13, {(1, 0): 0.5}, id="probability 0"),
        # m of query 0 is 0.1 for the first target and 0.3 for the second; it goes by IoU.
        pytest.param([[0.2], [0.75]], [[0.5], [0.4]], 13, {(0, 0): 0.5}, id="wanted by two: the higher IoU"),
        pytest.param([[0.5], [0.5]], [[0.5], [0.5]], 13, {(0, 0): 0.5}, id="two identical targets: the lower one"),
        # Query 0 is lost to the second target, so the first scales by query 1 alone.
        pytest.param(
            [[0.9, 0.2], [0.9, 0.0]],
            [[0.7, 0.5], [0.8, 0.0]],
            13,
            {(0, 1): 0.8, (1, 0): 0.5},
            id="scaled by what stays",
        ),
    ],
)
def test_worked_by_hand(probability: Rows, overlap: Rows, k: int, expected: Scores) -> None:
    assert scores(probability, overlap, k) == pytest.approx(expected)
    assert task_aligned.assign(probability, overlap, k, 1, 1) == pytest.approx(expected)


def test_exponents() -> None:
    """0.25^0.5 * 0.5^2 = 0.125 beats 0.81^0.5 * 0.3^2 = 0.081; the share is 0.648 of 0.5."""
    assert scores([[0.25, 0.81]], [[0.5, 0.3]], alpha=0.5, beta=2.0) == pytest.approx({(0, 0): 0.5, (1, 0): 0.324})


def test_values_that_underflow_give_no_pair_and_small_ones_keep_their_share() -> None:
    assert scores([[0.5]], [[1e-9]], beta=6.0) == {}
    assert scores([[0.5, 0.25]], [[1e-4, 1e-4]], beta=6.0) == pytest.approx({(0, 0): 1e-4, (1, 0): 5e-5})


@pytest.mark.parametrize("inside", [False, True])
def test_equals_the_plain_rules_on_1000_problems(inside: bool) -> None:
    for number, problem in enumerate(thousand_problems()):
        prediction, targets = problem.prediction, problem.targets
        k, alpha, beta = ((13, 1.0, 6.0), (2, 0.5, 6.0), (1, 1.0, 1.0))[number % 3]
        matcher = TaskAligned([k], alpha, beta, inside)
        assignment = matcher(prediction, targets)
        check_assignment(assignment, targets, problem.num_queries, at_most=k, unique_queries=True)
        overlap = matcher.score(prediction, targets)
        probability = target_logits(prediction.logits, targets.labels).sigmoid()
        assert prediction.reference is not None
        for g in range(20):
            for b, count in enumerate(targets.counts):
                centres = prediction.reference[g, b, :, :2].tolist()
                within = [
                    [abs(cx - x) < w / 2 and abs(cy - y) < h / 2 for cx, cy in centres]
                    for x, y, w, h in problem.images[b].boxes.tolist()
                ]
                expected = task_aligned.assign(
                    probability[g, b, :count].tolist(),
                    overlap[g, b, :count].tolist(),
                    k,
                    alpha,
                    beta,
                    within if inside else None,
                )
                mask = assignment.mask[g, b]
                targets_of = mask.nonzero()[:, 0].tolist()
                pairs = zip(assignment.query[g, b][mask].tolist(), targets_of, strict=True)
                found = dict(zip(pairs, assignment.score[g, b][mask].tolist(), strict=True))
                assert found == pytest.approx(expected, rel=1e-4)


def test_with_inside_the_reference_decides() -> None:
    box = torch.tensor([[[[0.5, 0.5, 0.4, 0.4]]]])
    target = Target(box[0, 0], torch.tensor([0]), 0, (64, 64))
    for x, pairs in ((0.6, [(0, 0)]), (0.75, [])):
        prediction = Prediction(torch.zeros(1, 1, 1, 1), box, torch.tensor([[[[x, 0.5, 0.4, 0.4]]]]))
        matcher = TaskAligned([13], inside=True)
        assert matcher.reads_references
        assert matcher(prediction, PaddedTargets.from_targets([target])).pairs(0, 0) == pairs


def test_a_stack_gives_what_each_member_gives_alone() -> None:
    members = [TaskAligned([k], 0.5, 4.0) for k in (13, 1, 3)]
    check_stack(members)
    assert TaskAligned([1]).options != members[0].options


def test_settings() -> None:
    config = TaskAlignedConfig()
    assert (config.k, config.alpha, config.beta, config.inside) == (13, 1, 6, False)
    assert config.describe() == "task-aligned k=13 alpha=1 beta=6"
    assert not config.build().reads_references
    with pytest.raises(ValidationError):
        TaskAlignedConfig(alpha=-1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        TaskAligned([0])
