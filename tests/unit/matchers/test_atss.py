"""ATSS against the plain re-statement, on boxes worked by hand, and as a stack."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lora_detr.matchers.atss import ATSS, ATSSConfig
from lora_detr.matchers.invariants import check_assignment
from lora_detr.structures import PaddedTargets, Prediction, Target
from tests.reference import atss
from tests.unit.matchers.random_problems import check_stack, thousand_problems

Box = tuple[float, float, float, float]

# Beside the target in the middle of the image, half as wide: IoU and distance. In sixteenths, which are exact.
TARGET: Box = (0.5, 0.5, 0.5, 0.5)
SAME: Box = (0.5, 0.5, 0.5, 0.5)  # 1, 0
THIN: Box = (0.5, 0.5, 0.25, 0.5)  # 0.125 / 0.25 = 0.5, 0
ASIDE: Box = (0.625, 0.5, 0.5, 0.5)  # 0.375 * 0.5 / (0.5 - 0.1875) = 0.6, 0.125
OTHER: Box = (0.375, 0.5, 0.5, 0.5)  # 0.6, 0.125
EDGE: Box = (0.5, 0.8125, 0.5, 0.5)  # 0.1875 * 0.5 / (0.5 - 0.09375) = 0.231, 0.3125, its centre outside
FAR: Box = (0.9375, 0.5, 0.125, 0.125)  # 0, 0.4375


def pairs(references: list[Box], targets: list[Box], k: int = 9) -> list[tuple[int, int]]:
    """Return the pairs of one image, whose predicted boxes are elsewhere than the references."""
    boxes = torch.tensor([[references]])
    prediction = Prediction(torch.zeros(1, 1, len(references), 1), 0.9 * boxes + 0.05, boxes)
    target = Target(torch.tensor(targets).view(-1, 4), torch.zeros(len(targets), dtype=torch.int64), 0, (64, 64))
    return ATSS([k])(prediction, PaddedTargets.from_targets([target])).pairs(0, 0)


@pytest.mark.parametrize(
    ("references", "targets", "k", "expected"),
    [
        # mean (1 + 0.5 + 0.6 + 0) / 4 = 0.525, deviation sqrt(0.5075 / 3) = 0.411
        pytest.param([SAME, THIN, ASIDE, FAR], [TARGET], 9, [(0, 0)], id="one above mean + deviation"),
        # mean 2 / 5, deviation sqrt((2 * 0.36 + 3 * 0.16) / 4) = 0.548
        pytest.param([SAME, FAR, FAR, SAME, FAR], [TARGET], 9, [(0, 0), (3, 0)], id="two above mean + deviation"),
        pytest.param([ASIDE, OTHER, FAR], [TARGET], 2, [(0, 0), (1, 0)], id="equal IoUs all pass"),
        pytest.param([ASIDE, FAR, SAME, THIN], [TARGET], 1, [(2, 0)], id="one candidate has no deviation"),
        pytest.param([FAR, THIN, SAME], [TARGET], 1, [(1, 0)], id="of equal distances the lower query"),
        pytest.param([SAME, THIN], [TARGET], 2, [], id="two that differ never reach"),
        pytest.param([EDGE, FAR], [TARGET], 1, [], id="centre outside"),
        pytest.param([FAR, FAR], [TARGET], 9, [], id="IoU 0 everywhere"),
        pytest.param([SAME], [(0.5, 0.5, 0.0, 0.5)], 9, [], id="a target without area"),
        pytest.param([(0.5, 0.5, 0.0, 0.5)], [TARGET], 9, [], id="a reference without area"),
        pytest.param([SAME, ASIDE], [TARGET, TARGET], 1, [(0, 0)], id="two identical targets: the lower one"),
        # IoU 0.6 with the first target, 1 with the second.
        pytest.param([ASIDE], [TARGET, ASIDE], 1, [(0, 1)], id="wanted by two: the target it overlaps more"),
        pytest.param([SAME], [], 9, [], id="no target"),
    ],
)
def test_worked_by_hand(references: list[Box], targets: list[Box], k: int, expected: list[tuple[int, int]]) -> None:
    assert pairs(references, targets, k) == expected


def test_equals_the_plain_rules_on_1000_problems() -> None:
    found = 0
    for number, problem in enumerate(thousand_problems()):
        prediction, k = problem.prediction, (9, 3, 1, 4)[number % 4]
        assignment = ATSS([k])(prediction, problem.targets)
        check_assignment(assignment, problem.targets, problem.num_queries, at_most=k, unique_queries=True)
        assert prediction.reference is not None
        for g, layer in enumerate(prediction.reference):
            for b, references in enumerate(layer.tolist()):
                expected = atss.assign(references, problem.images[b].boxes.tolist(), k)
                assert assignment.pairs(g, b) == expected
                found += len(expected)
    assert found > 500


def test_references_decide_and_the_overlap_of_the_prediction_is_published() -> None:
    problem = next(thousand_problems())
    moved = Prediction(
        problem.prediction.logits, problem.prediction.boxes.flip(-2).contiguous(), problem.prediction.reference
    )
    first, second = (ATSS([9])(prediction, problem.targets) for prediction in (problem.prediction, moved))
    assert torch.equal(first.mask, second.mask) and torch.equal(first.query, second.query)
    overlap = ATSS([9]).score(moved, problem.targets)
    assert torch.equal(second.score, overlap.gather(-1, second.query).masked_fill(~second.mask, 0.0))
    assert not torch.equal(first.score, second.score)


def test_a_stack_of_different_k_gives_what_each_gives_alone() -> None:
    check_stack([ATSS([k]) for k in (9, 3, 40)])


def test_settings() -> None:
    assert (ATSSConfig().k, ATSSConfig().describe()) == (9, "atss k=9")
    with pytest.raises(ValidationError):
        ATSSConfig(k=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        ATSS([0])
