"""SimOTA against the plain re-statement, on matrices worked by hand, and as a stack."""

from __future__ import annotations

from math import log

import pytest
import torch
from pydantic import ValidationError

from lora_detr.matchers.invariants import check_assignment
from lora_detr.matchers.simota import SimOTA, SimOTAConfig
from lora_detr.structures import PaddedTargets, Prediction, Target
from tests.reference import simota
from tests.unit.matchers.random_problems import check_stack, make_problem, thousand_problems

Rows = list[list[float]]


def pairs(cost: Rows, overlap: Rows, q: int = 10) -> list[tuple[int, int]]:
    mask = torch.ones(1, len(cost)).bool()
    return SimOTA([q]).assign(torch.tensor([[cost]]), torch.tensor([[overlap]]), mask).pairs(0, 0)


@pytest.mark.parametrize(
    ("cost", "overlap", "q", "expected"),
    [
        # 0.75 + 0.75 + 0.5 = 2: two queries, the cheapest and not those of highest IoU.
        pytest.param([[3, 1, 2]], [[0.75, 0.75, 0.5]], 10, [(1, 0), (2, 0)], id="as many as the IoUs add up to"),
        pytest.param([[3, 1, 2]], [[0.75, 0.75, 0.25]], 10, [(1, 0)], id="rounded down"),
        pytest.param([[3, 1, 2]], [[0.75, 0.75, 0.5]], 2, [(1, 0)], id="of the q largest alone"),
        pytest.param([[3, 1, 2]], [[0.0, 0.0, 0.0]], 10, [(1, 0)], id="IoU 0 everywhere: the cheapest"),
        pytest.param([[2, 1, 1]], [[0.0, 0.0, 0.0]], 10, [(1, 0)], id="of equal costs the lower query"),
        # Both targets want query 0. The second keeps it; the first is not given query 1.
        pytest.param([[2, 5], [1, 5]], [[0.5, 0.5], [0.5, 0.0]], 10, [(0, 1)], id="wanted by two: the cheaper target"),
        pytest.param([[1, 5], [1, 5]], [[0.5, 0.0], [0.5, 0.0]], 10, [(0, 0)], id="two identical targets: the lower"),
        # 1 + 1 = 2 for the first, which keeps query 0; the second, more expensive, has query 1 too.
        pytest.param([[1, 4], [2, 3]], [[1.0, 1.0], [1.0, 1.0]], 10, [(0, 0), (1, 1)], id="all want all"),
    ],
)
def test_worked_by_hand(cost: Rows, overlap: Rows, q: int, expected: list[tuple[int, int]]) -> None:
    cost = [[float(value) for value in row] for row in cost]
    assert pairs(cost, overlap, q) == expected
    assert simota.assign(cost, overlap, q) == expected


def test_cost_worked_by_hand() -> None:
    """Two classes at probability 0.25 and 0.64, whose roots are 0.5 and 0.8; the label is the first."""
    logits = torch.tensor([[[[log(0.25 / 0.75), log(0.64 / 0.36)]] * 2]])
    target = Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), 0, (64, 64))
    boxes = torch.tensor([[[[0.6, 0.5, 0.4, 0.4], [0.8, 0.5, 0.4, 0.4]]]])  # IoU 0.12 / 0.2 and 0.04 / 0.28
    reference = torch.tensor([[[[0.69, 0.5, 0.1, 0.1], [0.71, 0.5, 0.1, 0.1]]]])  # inside 0.3 to 0.7, and outside
    prediction, targets = Prediction(logits, boxes, reference), PaddedTargets.from_targets([target])
    matcher = SimOTA([10])
    cost = matcher.cost(prediction, targets, matcher.score(prediction, targets))
    classes = -log(0.5) - log(1 - 0.8)
    assert cost[0, 0, 0, 0].item() == pytest.approx(classes - 3 * log(0.6), abs=1e-5)
    assert cost[0, 0, 0, 1].item() == pytest.approx(classes - 3 * log(1 / 7) + 1e5, abs=0.01)


def test_equals_the_plain_rules_on_1000_problems() -> None:
    """Pairs by the matcher's own costs; costs by the formula."""
    for number, problem in enumerate(thousand_problems()):
        prediction, targets, q = problem.prediction, problem.targets, (10, 2, 1, 4)[number % 4]
        matcher = SimOTA([q])
        assignment = matcher(prediction, targets)
        check_assignment(assignment, targets, problem.num_queries, at_most=q, unique_queries=True)
        overlap = matcher.score(prediction, targets)
        costs = matcher.cost(prediction, targets, overlap)
        for g in range(20):
            for b, count in enumerate(targets.counts):
                rows = costs[g, b, :count].tolist(), overlap[g, b, :count].tolist()
                assert assignment.pairs(g, b) == simota.assign(*rows, q)
    assert prediction.reference is not None
    for b, image in enumerate(problem.images):
        for t, (x, y, w, h) in enumerate(image.boxes.tolist()):
            for i, logits in enumerate(prediction.logits[0, b].tolist()):
                near = prediction.reference[0, b, i].tolist()
                outside = abs(near[0] - x) >= w / 2 or abs(near[1] - y) >= h / 2
                expected = simota.class_cost(logits, int(image.labels[t])) + 1e5 * outside
                expected -= 3 * log(overlap[0, b, t, i].item() + 1e-8)
                assert costs[0, b, t, i].item() == pytest.approx(expected, abs=0.02 if outside else 1e-3)


def test_the_overlap_is_published() -> None:
    problem = next(thousand_problems())
    assignment = SimOTA([5])(problem.prediction, problem.targets)
    overlap = SimOTA([5]).score(problem.prediction, problem.targets)
    assert torch.equal(assignment.score, overlap.gather(-1, assignment.query).masked_fill(~assignment.mask, 0.0))


def test_a_probability_of_exactly_0_or_1_gives_a_finite_cost() -> None:
    problem = make_problem(seed=2, groups=1, counts=[3], queries=8, classes=2)
    for logit in (torch.inf, -torch.inf, 200.0):
        prediction = Prediction(torch.full_like(problem.prediction.logits, logit), problem.prediction.boxes)
        assert SimOTA([5]).cost(prediction, problem.targets, torch.zeros(1, 1, 3, 8)).isfinite().all()


def test_a_stack_of_different_q_gives_what_each_gives_alone() -> None:
    check_stack([SimOTA([q]) for q in (10, 1, 3)])


def test_settings() -> None:
    assert (SimOTAConfig().k, SimOTAConfig().describe()) == (10, "simota k=10")
    with pytest.raises(ValidationError):
        SimOTAConfig(k=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        SimOTA([0])
