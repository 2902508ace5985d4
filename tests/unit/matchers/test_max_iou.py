"""Max-IoU matching against the plain re-statement, on matrices worked by hand, and as a stack."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from benchmarks.operations import cost_of
from lora_detr.losses.config import BranchLossConfig, CriterionConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.matchers.invariants import check_assignment
from lora_detr.matchers.max_iou import MaxIoU, MaxIoUConfig
from lora_detr.matchers.topk import TopK
from lora_detr.structures import PaddedTargets, Prediction, Target
from tests.reference import max_iou
from tests.reference.boxes import iou
from tests.unit.losses.step_outputs import make_step
from tests.unit.matchers.random_problems import Problem, check_stack, make_problem, problems

# Rounded as the IoUs are that it is compared with.
POS = torch.tensor(0.6).item()
Pairs = list[tuple[int, int]]


def pairs(overlap: list[list[float]], k: int = 4, pos: float = 0.6) -> Pairs:
    """Return the pairs of one image from its IoUs [T][Q]."""
    assignment = MaxIoU([k], pos).match(torch.tensor([[overlap]]), torch.ones(1, len(overlap)).bool())
    assert torch.equal(assignment.mask, assignment.score > 0)
    return assignment.pairs(0, 0)


@pytest.mark.parametrize(
    ("overlap", "options", "expected"),
    [
        pytest.param([[0.9, 0.6, 0.59, 0.0]], {}, [(0, 0), (1, 0)], id="equality passes"),
        pytest.param([[0.7, 0.9, 0.8]], {"k": 2}, [(1, 0), (2, 0)], id="the k best"),
        pytest.param([[0.7, 0.9, 0.7, 0.7]], {"k": 2}, [(0, 0), (1, 0)], id="of equals the lower query"),
        pytest.param([[0.7, 0.9], [0.8, 0.7]], {}, [(0, 1), (1, 0)], id="a query prefers one target"),
        pytest.param([[0.7, 0.1], [0.7, 0.2]], {}, [(0, 0)], id="of equals the lower target"),
        pytest.param([[0.1, 0.3, 0.3]], {}, [(1, 0)], id="forced: the best, the first of equals"),
        pytest.param([[0.0, 0.0]], {}, [], id="no overlap, no pair"),
        pytest.param([[0.9, 0.0], [0.5, 0.4]], {}, [(0, 0)], id="forced: takes no query from another target"),
        pytest.param([[0.2, 0.0], [0.3, 0.0]], {}, [(0, 1)], id="forced: of two the one that overlaps more"),
        pytest.param([[0.3, 0.2], [0.3, 0.0]], {}, [(0, 0)], id="forced: of equals the lower target"),
        pytest.param(
            [[0.9, 0.7], [0.0, 0.5]], {"k": 1}, [(0, 0), (1, 1)], id="forced: a query beyond k is free for another"
        ),
        pytest.param([[0.9, 0.9], [0.9, 0.9]], {}, [(0, 0), (1, 0)], id="two identical targets"),
        pytest.param([[1.0]], {"k": 9, "pos": 1.0}, [(0, 0)], id="fewer queries than k"),
    ],
)
def test_worked_by_hand(overlap: list[list[float]], options: dict[str, float], expected: Pairs) -> None:
    assert pairs(overlap, **options) == expected  # type: ignore[arg-type]
    assert max_iou.assign(torch.tensor(overlap).tolist(), options.get("k", 4), options.get("pos", POS)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overlap", "neg", "min_pos", "expected", "ignored"),
    [
        pytest.param([[0.9, 0.5, 0.3, 0.2]], 0.3, 0.0, [(0, 0)], [1, 2], id="from neg up to pos"),
        pytest.param([[0.5, 0.4, 0.2]], 0.3, 0.0, [(0, 0)], [1], id="what is paired is not ignored"),
        pytest.param([[0.5, 0.4, 0.2]], 0.3, None, [], [0, 1], id="nothing is forced"),
        pytest.param([[0.5, 0.4, 0.2]], 0.6, 0.5, [(0, 0)], [], id="neg equal to pos leaves no band"),
        pytest.param([[0.5, 0.4, 0.2]], None, 0.55, [], [], id="the best does not reach min_pos"),
        # Query 1 is best by the second target; the first, with 0.1, decides nothing.
        pytest.param([[0.9, 0.1], [0.0, 0.4]], 0.3, None, [(0, 0)], [1], id="the highest IoU of a query counts"),
    ],
)
def test_bands_worked_by_hand(
    overlap: list[list[float]], neg: float | None, min_pos: float | None, expected: Pairs, ignored: list[int]
) -> None:
    matcher = MaxIoU([4], 0.6, neg, min_pos)
    assignment = matcher.match(torch.tensor([[overlap]]), torch.ones(1, len(overlap)).bool())
    assert assignment.pairs(0, 0) == expected
    found = [] if assignment.ignored is None else assignment.ignored[0, 0].nonzero().flatten().tolist()
    assert found == ignored
    assert (assignment.ignored is None) == (neg is None)


def test_ignored_queries_have_no_class_loss_and_all_others_what_they_had() -> None:
    """Whatever the loss, also beside a branch that ignores none, and where the primary pairs one of them."""
    step = make_step(3, layers=1, branches=2, counts=[3, 0], queries=30, classes=2)
    for merge, kind in product((False, True), ("quality", "focal", "iou-aware")):
        config = CriterionConfig(branch=BranchLossConfig(merge_one_to_one=merge, classification=kind))

        def gradient(neg: float | None, config: CriterionConfig = config) -> tuple[Tensor, Tensor | None]:
            matchers = [MaxIoU([2], 0.9, neg), TopK([2], positive_fraction=None)]
            criterion = Criterion(1, config, ["branch0", "branch1"], matchers)
            sources = criterion.match(step.output, step.branches, step.targets, Normaliser(3))
            total = criterion.losses(sources, step.targets, step.output).total
            return torch.autograd.grad(total, step.leaves["branch/logits"])[0][:, 0], sources[1].assignment.ignored

        plain, none = gradient(None)
        banded, ignored = gradient(0.2)
        assert none is None and ignored is not None
        assert ignored[0, 0].any() and not ignored[:, 1].any() and not ignored[1].any()
        assert torch.equal(banded, plain * ~ignored[..., None])


def test_example_of_mmdet() -> None:
    """Boxes [0, 0, 10, 10] and [10, 10, 20, 20] and the target [0, 0, 10, 9] give [1, 0]."""
    boxes = torch.tensor([[[[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]]])
    target = Target(torch.tensor([[0.25, 0.225, 0.5, 0.45]]), torch.tensor([0]), 0, (20, 20))
    prediction = Prediction(torch.zeros(1, 1, 2, 1), boxes)
    assignment = MaxIoU([4])(prediction, PaddedTargets.from_targets([target]))
    assert assignment.pairs(0, 0) == [(0, 0)]
    assert assignment.score[0, 0, 0, 0].item() == pytest.approx(0.9)


def rounded(problem: Problem) -> Tensor:
    """Return the IoUs [G, B, T, Q] in steps of 0.2, so that many are equal, to each other and to the threshold."""
    return (MaxIoU([1]).score(problem.prediction, problem.targets) * 5).round() / 5


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_equals_the_plain_rules(problem: Problem, data: st.DataObject) -> None:
    neg = data.draw(st.sampled_from([None, 0.2, 0.6]))
    min_pos = data.draw(st.sampled_from([0.0, 0.4, None]))
    groups = problem.prediction.boxes.shape[0]
    ks = [data.draw(st.integers(1, 6)) for _ in range(groups)]
    score = rounded(problem) if data.draw(st.booleans()) else MaxIoU([1]).score(problem.prediction, problem.targets)
    assignment = MaxIoU(ks, 0.6, neg, min_pos).match(score, problem.targets.mask)
    rounded_min_pos = None if min_pos is None else torch.tensor(min_pos).item()
    check_assignment(assignment, problem.targets, problem.num_queries, at_most=max(ks), unique_queries=True)
    assert assignment.mask.shape[-1] == min(max(ks), problem.num_queries)
    for g in range(groups):
        for b, count in enumerate(problem.targets.counts):
            rows = score[g, b, :count].tolist()
            assert assignment.pairs(g, b) == max_iou.assign(rows, ks[g], POS, rounded_min_pos)
            if assignment.ignored is not None and neg is not None:
                expected = max_iou.ignored(rows, assignment.pairs(g, b), POS, torch.tensor(neg).item())
                assert assignment.ignored[g, b].nonzero().flatten().tolist() == (expected if count else [])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems())
def test_scores_are_ious(problem: Problem) -> None:
    score = MaxIoU([1]).score(problem.prediction, problem.targets)
    for g in range(score.shape[0]):
        for b, image in enumerate(problem.images):
            _, boxes, _, targets = problem.plain(g, b)
            found = score[g, b, : len(image.labels)]
            expected = torch.tensor([[iou(box, target) for box in boxes] for target in targets]).view_as(found)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(groups=1), st.integers(0, 100))
def test_permuted_queries_give_permuted_pairs(problem: Problem, seed: int) -> None:
    order = torch.randperm(problem.num_queries, generator=torch.Generator().manual_seed(seed))
    score = MaxIoU([1]).score(problem.prediction, problem.targets)
    # Without ties, which the lower index decides.
    score = torch.where(score > 0, score + 1e-4 * torch.rand_like(score), score)
    plain = MaxIoU([3]).match(score, problem.targets.mask)
    moved = MaxIoU([3]).match(score[..., order], problem.targets.mask)
    for b in range(len(problem.images)):
        assert sorted((order[query].item(), target) for query, target in moved.pairs(0, b)) == plain.pairs(0, b)


def test_a_stack_gives_what_each_member_gives_alone() -> None:
    check_stack([MaxIoUConfig(k=k).build() for k in (6, 1, 3)])


def test_boxes_without_area_and_values_that_are_no_numbers() -> None:
    problem = make_problem(seed=2, groups=1, counts=[3], queries=8, classes=2)
    boxes = problem.prediction.boxes.clone()
    boxes[..., 2:] = 0
    assert not MaxIoU([4])(Prediction(problem.prediction.logits, boxes), problem.targets).mask.any()
    boxes = problem.prediction.boxes.clone()
    boxes[0, 0, 0] = torch.nan
    assignment = MaxIoU([4])(Prediction(problem.prediction.logits, boxes), problem.targets)
    check_assignment(assignment, problem.targets, 8, unique_queries=True)
    assert assignment.score.isfinite().all()


def test_the_device_is_never_waited_for() -> None:
    problem = make_problem(seed=3, groups=2, counts=[3, 1], queries=8, classes=2)
    boxes = problem.prediction.boxes.requires_grad_()
    cost = cost_of(lambda: boxes.sum() + MaxIoU([4])(problem.prediction, problem.targets).score.sum(), [boxes])
    assert cost.host_copies == 0


def test_settings() -> None:
    config = MaxIoUConfig()
    assert (config.k, config.pos, config.describe()) == (4, 0.6, "max-iou k=4 pos=0.6")
    assert config.build().k == (4,)
    first = MaxIoUConfig(pos=0.7, neg=0.3)
    assert first.describe() == "max-iou k=4 pos=0.7 neg=0.3"
    assert first.build().options == (0.7, 0.3, 0.0) != config.build().options
    assert MaxIoUConfig(min_pos=None).describe() == "max-iou k=4 pos=0.6 min_pos=none"
    for wrong in ({"k": 0}, {"pos": 0.0}, {"pos": 1.1}, {"pos": 0.5, "neg": 0.6}):
        with pytest.raises(ValidationError):
            MaxIoUConfig.model_validate(wrong)
    with pytest.raises(ValueError, match="k must be at least 1"):
        MaxIoU([0])
