"""A query with several pairs: which one stays, and the union of two assignments."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.matchers import HungarianConfig, TopK
from lora_detr.matchers.conflicts import best_pair_of_query, merge_one_to_one, wins_query, without_duplicates
from lora_detr.matchers.invariants import check_assignment
from lora_detr.structures import Assignment
from tests.reference import one_to_many
from tests.unit.matchers.random_problems import Problem, problems


def listed(assignment: Assignment, group: int, image: int, score: Tensor) -> list[tuple[int, int]]:
    """Return the pairs in the order of the re-statement: by score, of equal ones the lower target last."""
    rows = score[group, image].tolist()
    return sorted(assignment.pairs(group, image), key=lambda pair: (rows[pair[1]][pair[0]], -pair[1], -pair[0]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6), st.booleans())
def test_best_pair_and_union_equal_the_plain_rules(problem: Problem, k: int, coarse: bool) -> None:
    matcher = TopK([k], [0.2], [0.3], positive_fraction=None)
    score = matcher.score(problem.prediction, problem.targets)
    if coarse:
        score = (score * 4).round() / 4  # many ties
    one_to_many_pairs = matcher.match(score, problem.targets.mask)
    one_to_one = HungarianConfig().build()(problem.prediction, problem.targets)
    clean = without_duplicates(one_to_many_pairs, problem.num_queries)
    merged = merge_one_to_one(one_to_many_pairs, one_to_one, score)
    for assignment in (clean, merged):
        check_assignment(assignment, problem.targets, problem.num_queries, at_most=k + 1, unique_queries=True)
    for g in range(score.shape[0]):
        for b in range(len(problem.images)):
            ordered = listed(one_to_many_pairs, g, b, score)
            assert clean.pairs(g, b) == one_to_many.unite([], ordered)
            assert merged.pairs(g, b) == one_to_many.unite(one_to_one.pairs(g, b), ordered)


def test_pairs_that_join_bring_their_score() -> None:
    one_to_many_pairs = Assignment(torch.tensor([[[[2]]]]), torch.tensor([[[[0.9]]]]), torch.ones(1, 1, 1, 1).bool())
    one_to_one = Assignment(torch.tensor([[[[1]]]]), torch.tensor([[[[-3.0]]]]), torch.ones(1, 1, 1, 1).bool())
    merged = merge_one_to_one(one_to_many_pairs, one_to_one, torch.tensor([[[[0.1, 0.2, 0.9]]]]))
    assert merged.pairs(0, 0) == [(1, 0), (2, 0)]
    torch.testing.assert_close(merged.score.flatten(), torch.tensor([0.9, 0.2]))


def test_union_repeats_the_primary_pairs_for_each_branch() -> None:
    """Groups are (branch, layer): each branch meets the one-to-one pairs of its own layer."""
    layers, branches = 2, 3
    nothing = torch.zeros(branches * layers, 1, 1, 1)
    empty = Assignment(nothing.long(), nothing, nothing.bool())
    one_to_one = Assignment(torch.tensor([4, 7]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1) > 0)
    merged = merge_one_to_one(empty, one_to_one, torch.rand(branches * layers, 1, 1, 9))
    assert [merged.pairs(g, 0) for g in range(6)] == [[(4, 0)], [(7, 0)]] * branches


def test_equal_scores_keep_the_lower_target() -> None:
    query = torch.tensor([[[[0, 1], [0, 1]]]])
    score = torch.tensor([[[[0.5, 0.2], [0.5, 0.3]]]])
    kept = best_pair_of_query(Assignment(query, score, torch.ones_like(query).bool()), 4)
    assert kept.flatten().tolist() == [True, False, False, True]


def test_of_pairs_with_different_queries_both_ways_keep_the_same() -> None:
    """With many equal values, and more targets than queries."""
    torch.manual_seed(0)
    for targets, queries, k in ((1, 1, 1), (5, 8, 3), (9, 4, 4), (3, 20, 20)):
        query = torch.rand(10, 3, targets, queries).argsort(-1)[..., :k]
        value = (torch.rand(query.shape) * 4).round()
        keep = torch.rand(query.shape) < 0.7
        expected = best_pair_of_query(Assignment(query, value, keep), queries)
        assert torch.equal(wins_query(query, value, keep, queries), expected)
