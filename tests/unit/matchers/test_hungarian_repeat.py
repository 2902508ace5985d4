"""Matching of repeated targets against the plain re-statement, and on matrices worked by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lora_detr.matchers.hungarian import Problem, solve_problems
from lora_detr.matchers.hungarian_repeat import HungarianRepeat, HungarianRepeatConfig
from lora_detr.matchers.invariants import check_assignment
from lora_detr.ops.host import HostCopies
from lora_detr.structures import Prediction
from tests.reference import hungarian
from tests.unit.matchers.random_problems import make_problem, thousand_problems


@pytest.mark.parametrize(
    ("cost", "k", "share", "expected"),
    [
        # Costs by target, then by query. Two targets, four queries: two copies of each fit.
        pytest.param([[1, 2, 9, 9], [9, 3, 4, 5]], 2, 1.0, [(0, 0), (1, 0), (2, 1), (3, 1)], id="two each"),
        # 1 + 2 + 3 + 4 = 10 if the first had three; with two each it is 1 + 2 + 8 + 4 = 15.
        pytest.param([[1, 2, 3, 9], [9, 9, 8, 4]], 9, 1.0, [(0, 0), (1, 0), (2, 1), (3, 1)], id="9 copies become 2"),
        pytest.param([[1, 2, 3, 9], [9, 9, 8, 4]], 9, 0.5, [(0, 0), (3, 1)], id="half the queries: one copy"),
        pytest.param([[1, 2, 3, 9]], 3, 1.0, [(0, 0), (1, 0), (2, 0)], id="one target has all copies"),
        pytest.param([[1, 2, 3, 9]], 3, 0.5, [(0, 0), (1, 0)], id="one target, half the queries"),
        # Three targets, two queries: one copy each, and 1 + 2 = 3 is the least that two of them can cost.
        pytest.param([[1, 4], [3, 3], [4, 2]], 6, 1.0, [(0, 0), (1, 2)], id="more targets than queries"),
        # Both want query 0: 1 + 3 = 4 against 2.5 + 2 = 4.5.
        pytest.param([[1, 2.5], [2, 3]], 1, 1.0, [(0, 0), (1, 1)], id="all compete for all"),
    ],
)
def test_worked_by_hand(cost: list[list[float]], k: int, share: float, expected: list[tuple[int, int]]) -> None:
    table = torch.tensor([[cost]], dtype=torch.float32)
    targets = make_problem(0, groups=1, counts=[len(cost)], queries=len(cost[0]), classes=1).targets
    (assignment,) = solve_problems([Problem(table, k, share)], targets)
    assert assignment.pairs(0, 0) == expected
    assert assignment.mask.shape == (1, 1, len(cost), k)
    columns = [list(column) for column in zip(*cost, strict=True)]
    assert hungarian.solve_repeated(columns, k, share) == expected


def test_equals_the_plain_rules_on_1000_problems() -> None:
    """Where costs are equal, as on a grid, another assignment may cost the same."""
    for number, problem in enumerate(thousand_problems()):
        prediction, targets, k = problem.prediction, problem.targets, (6, 2, 1, 3)[number % 4]
        matcher = HungarianRepeat(k)
        assignment = matcher(prediction, targets)
        check_assignment(assignment, targets, problem.num_queries, at_most=k, unique_queries=True)
        costs = matcher.cost(prediction, targets)
        for g in range(20):
            for b, count in enumerate(targets.counts):
                cost = costs[g, b, :count].T.tolist()
                found, expected = assignment.pairs(g, b), hungarian.solve_repeated(cost, k, 1.0)
                assert len(found) == len(expected)
                assert hungarian.total(cost, found) == pytest.approx(hungarian.total(cost, expected))
                assert number % 2 or found == expected


def test_the_overlap_is_published_after_one_host_copy() -> None:
    problem = make_problem(seed=3, groups=6, counts=[4, 0, 2], queries=20, classes=3)
    before = HostCopies.count
    assignment = HungarianRepeat(3)(problem.prediction, problem.targets)
    assert HostCopies.count == before + 1
    overlap = HungarianRepeat(3).score(problem.prediction, problem.targets)
    assert torch.equal(assignment.score, overlap.gather(-1, assignment.query).masked_fill(~assignment.mask, 0.0))


def test_a_target_far_from_every_query_has_its_pairs() -> None:
    problem = make_problem(seed=3, groups=1, counts=[2], queries=6, classes=2)
    boxes = torch.full_like(problem.prediction.boxes, 0.01)
    assignment = HungarianRepeat(3)(Prediction(problem.prediction.logits, boxes), problem.targets)
    assert int(assignment.mask.sum()) == 6
    assert assignment.score.max() < 0.01


def test_settings() -> None:
    config = HungarianRepeatConfig()
    assert (config.k, config.describe()) == (6, "hungarian-repeat k=6")
    assert (config.build().repeats, config.build().share) == (6, 1.0)
    assert HungarianRepeat.stacked([config.build()] * 2, 3).options == config.build().options
    with pytest.raises(ValidationError):
        HungarianRepeatConfig(k=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        HungarianRepeat(0)
