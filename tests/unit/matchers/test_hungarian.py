"""One-to-one matching against brute force and the plain cost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_detr.errors import NumericalError
from lora_detr.matchers import Hungarian, HungarianConfig
from lora_detr.matchers.hungarian import NonFiniteCostError, solve_together
from lora_detr.matchers.invariants import check_assignment
from lora_detr.ops.host import HostCopies
from lora_detr.structures import PaddedTargets, Prediction
from tests.reference import hungarian
from tests.unit.matchers.random_problems import Problem, draw_targets, make_problem, problems


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 2),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    queries=st.integers(1, 5),
)
def test_equals_brute_force(seed: int, groups: int, counts: list[int], queries: int) -> None:
    torch.manual_seed(seed)
    targets = PaddedTargets.from_targets(draw_targets(counts, 2))
    cost = torch.randn(groups, len(counts), targets.mask.shape[1], queries)
    assignment = solve_together([cost], targets)[0]
    check_assignment(assignment, targets, queries, at_most=1, unique_queries=True)
    for g in range(groups):
        for b, count in enumerate(counts):
            table = cost[g, b, :count].T.tolist()
            assert assignment.pairs(g, b) == (hungarian.brute_force(table) if count else [])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 2),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    queries=st.integers(1, 5),
    copies=st.integers(1, 3),
)
def test_repeated_targets_equal_brute_force(
    seed: int, groups: int, counts: list[int], queries: int, copies: int
) -> None:
    torch.manual_seed(seed)
    targets = PaddedTargets.from_targets(draw_targets(counts, 2))
    cost = torch.randn(groups, len(counts), targets.mask.shape[1], queries)
    alone, repeated = solve_together([cost, cost], targets, [1, copies])
    assert repeated.mask.shape == (*cost.shape[:3], copies)
    check_assignment(repeated, targets, queries, at_most=copies, unique_queries=True)
    torch.testing.assert_close(
        repeated.score[repeated.mask], -cost.gather(-1, repeated.query)[repeated.mask], rtol=0, atol=0
    )
    for g in range(groups):
        for b, count in enumerate(counts):
            table = cost[g, b, :count].T.tolist()
            assert alone.pairs(g, b) == (hungarian.brute_force(table) if count else [])
            pairs = repeated.pairs(g, b)
            assert pairs == (hungarian.brute_force_repeated(table, copies) if count else [])
            assert len(pairs) == min(queries, count * copies)


def test_every_copy_of_a_target_gets_a_query_where_there_are_enough() -> None:
    problem = make_problem(seed=0, groups=2, counts=[3, 0, 1], queries=20, classes=3)
    cost = HungarianConfig().build().cost(problem.prediction, problem.targets)
    (found,) = solve_together([cost], problem.targets, [6])
    assert found.mask.sum(-1).tolist() == [[[6, 6, 6], [0, 0, 0], [6, 0, 0]]] * 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([0.0, 2.0]), st.sampled_from([1e-8, 1e-6]))
def test_cost_and_pairs_equal_the_plain_rules(problem: Problem, class_cost: float, eps: float) -> None:
    matcher = Hungarian(class_cost, 5.0, 2.0, eps)
    cost, assignment = (
        matcher.cost(problem.prediction, problem.targets),
        matcher(problem.prediction, problem.targets),
    )
    check_assignment(assignment, problem.targets, problem.num_queries, at_most=1, unique_queries=True)
    for g in range(cost.shape[0]):
        for b, image in enumerate(problem.images):
            expected = hungarian.cost_matrix(*problem.plain(g, b), class_weight=class_cost, epsilon=eps)
            found = cost[g, b, : len(image.labels)].T
            torch.testing.assert_close(found, torch.tensor(expected).view_as(found), rtol=1e-5, atol=1e-4)
            pairs = assignment.pairs(g, b)
            assert len(pairs) == min(problem.num_queries, len(image.labels))
            # Nearly equal totals may be reached by different pairs.
            cheapest = hungarian.total(expected, hungarian.solve(expected))
            assert hungarian.total(expected, pairs) == pytest.approx(cheapest, rel=1e-5, abs=1e-4)


def test_batch_without_objects_n07() -> None:
    problem = make_problem(seed=0, groups=2, counts=[0, 0], queries=4, classes=3)
    assert not HungarianConfig().build()(problem.prediction, problem.targets).mask.any()


def test_more_objects_than_queries_n10() -> None:
    problem = make_problem(seed=0, groups=1, counts=[40], queries=3, classes=3)
    assert int(HungarianConfig().build()(problem.prediction, problem.targets).mask.sum()) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_is_named_n06(value: float) -> None:
    targets = PaddedTargets.from_targets(draw_targets([2, 3], 2))
    first, second = torch.rand(1, 2, 3, 3), torch.rand(4, 2, 3, 3)
    second[2, 1] = value
    with pytest.raises(NonFiniteCostError) as caught:
        solve_together([first, second], targets)
    assert (caught.value.problem, caught.value.group, caught.value.image) == (1, 2, 1)
    assert isinstance(caught.value, NumericalError)
    assert caught.value.exit_code == 6
    assert caught.value.code == "N06"


def test_a_single_nan_is_never_masked_n06() -> None:
    targets = PaddedTargets.from_targets(draw_targets([2], 2))
    cost = torch.rand(1, 1, 2, 5)
    cost[0, 0, 1, 4] = math.nan
    with pytest.raises(NonFiniteCostError):
        solve_together([cost], targets)


def test_values_of_padded_targets_are_not_read() -> None:
    targets = PaddedTargets.from_targets(draw_targets([1, 3], 2))
    cost = torch.rand(1, 2, 3, 4)
    cost[0, 0, 1:] = math.nan
    assert int(solve_together([cost], targets)[0].mask.sum()) == 4


def test_all_problems_of_a_step_take_one_copy_to_the_host() -> None:
    problem = make_problem(seed=0, groups=6, counts=[4, 2], queries=9, classes=3)
    matcher = HungarianConfig().build()
    costs = [matcher.cost(problem.prediction, problem.targets) for _ in range(3)]
    before = HostCopies.count
    solve_together(costs, problem.targets)
    assert HostCopies.count == before + 1


def test_the_config_passes_every_weight_on() -> None:
    matcher = HungarianConfig(class_cost=1.0, l1_cost=3.0, giou_cost=4.0, eps=1e-6).build()
    assert (matcher.class_cost, matcher.l1_cost, matcher.giou_cost, matcher.eps) == (1.0, 3.0, 4.0, 1e-6)
    problem = make_problem(seed=0, groups=1, counts=[2], queries=4, classes=3)
    poisoned = Prediction(torch.full_like(problem.prediction.logits, math.nan), problem.prediction.boxes)
    with pytest.raises(NonFiniteCostError):
        matcher(poisoned, problem.targets)
    unread = HungarianConfig(class_cost=0.0).build()(poisoned, problem.targets)
    assert int(unread.mask.sum()) == 2
