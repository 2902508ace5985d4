"""One-to-many matching against the plain re-statement, over all sizes and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.matchers import TopK, TopKConfig
from lora_detr.matchers.invariants import check_assignment
from lora_detr.structures import PaddedTargets, Prediction
from tests.reference import one_to_many
from tests.unit.matchers.random_problems import Problem, make_problem, problems

OPTIONS = st.fixed_dictionaries(
    {
        "strict_threshold": st.booleans(),
        "force_best": st.booleans(),
        "positive_fraction": st.sampled_from([None, 0.1, 0.25, 0.5, 1.0]),
        "candidates": st.sampled_from(["official", "strict"]),
    }
)


def distinct_scores(problem: Problem) -> Tensor:
    """Return scores [G, B, T, Q] in (0, 1), no two of them equal."""
    shape = (*problem.prediction.boxes.shape[:2], problem.targets.mask.shape[1], problem.num_queries)
    count = torch.Size(shape).numel()
    return (((torch.randperm(count) + 1) / (count + 1)).float()).view(shape)


def expected_pairs(
    score: Tensor, count: int, k: int, threshold: float, priority: Tensor, options: dict[str, Any]
) -> list[tuple[int, int]]:
    rules = one_to_many.Rules(k=k, threshold=torch.tensor(threshold).item(), **options)
    return sorted(one_to_many.assign(score[:count].tolist(), rules, priority=priority.tolist()))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_equals_the_plain_rules(problem: Problem, data: st.DataObject) -> None:
    options = data.draw(OPTIONS)
    groups, batch = problem.prediction.boxes.shape[:2]
    score = distinct_scores(problem)
    ks = [data.draw(st.integers(1, 8)) for _ in range(groups)]
    # Thresholds from the scores themselves, so that equality with the threshold occurs all the time.
    some = st.sampled_from(score.flatten().tolist()[:50])
    thresholds = [data.draw(st.one_of(st.sampled_from([0.0, 0.4, 1.0]), some)) for _ in range(groups)]
    priority = torch.rand(groups, batch, problem.num_queries)
    matcher = TopK(ks, thresholds, [0.3] * groups, **options)
    assignment = matcher.match(score, problem.targets.mask, priority)
    check_assignment(
        assignment,
        problem.targets,
        problem.num_queries,
        at_most=max(ks),
        unique_queries=options["candidates"] == "strict",
    )
    for g in range(groups):
        for b, count in enumerate(problem.targets.counts):
            expected = expected_pairs(score[g, b], count, ks[g], thresholds[g], priority[g, b], options)
            assert assignment.pairs(g, b) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.floats(0, 1))
def test_scores_equal_equation_7(problem: Problem, class_weight: float) -> None:
    groups = problem.prediction.boxes.shape[0]
    score = TopK([1], [0.4], [class_weight]).score(problem.prediction, problem.targets)
    assert score.min() >= 0 and score.max() <= 1 + 1e-6
    for g in range(groups):
        for b, image in enumerate(problem.images):
            expected = one_to_many.matching_scores(*problem.plain(g, b), class_weight)
            found = score[g, b, : len(image.labels)]
            torch.testing.assert_close(found, torch.tensor(expected).view_as(found), rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(), OPTIONS)
def test_ties_break_no_promise(problem: Problem, options: dict[str, Any]) -> None:
    score = (distinct_scores(problem) * 3).round() / 3
    assignment = TopK([3], [0.3], [0.3], **options).match(score, problem.targets.mask)
    check_assignment(assignment, problem.targets, problem.num_queries, at_most=3)


@pytest.mark.parametrize(("strict", "passes"), [(False, True), (True, False)])
def test_score_equal_to_the_threshold(strict: bool, passes: bool) -> None:
    score = torch.tensor([[[[0.4, 0.1, 0.2, 0.3]]]])
    matcher = TopK([2], [0.4], [0.3], strict_threshold=strict, force_best=False, positive_fraction=None)
    assert matcher.match(score, torch.ones(1, 1).bool()).pairs(0, 0) == ([(0, 0)] if passes else [])


@pytest.mark.parametrize(("force", "found"), [(True, [(2, 0)]), (False, [])])
def test_best_query_of_a_target_is_forced(force: bool, found: list[tuple[int, int]]) -> None:
    score = torch.tensor([[[[0.1, 0.0, 0.2, 0.05]]]])
    matcher = TopK([6], [0.4], [0.3], force_best=force)
    assert matcher.match(score, torch.ones(1, 1).bool()).pairs(0, 0) == found


def test_a_permutation_as_priority_keeps_what_it_names_first() -> None:
    problem = make_problem(seed=3, groups=1, counts=[5], queries=40, classes=3)
    score = distinct_scores(problem)
    rules = one_to_many.Rules(k=40, threshold=0.2, positive_fraction=0.25)
    positives = one_to_many.positive_queries(score[0, 0].tolist(), rules)
    assert len(positives) > 10
    permutation = torch.randperm(len(positives)).tolist()
    priority = torch.zeros(1, 1, 40)
    for rank, position in enumerate(permutation):
        priority[0, 0, positives[position]] = len(positives) - rank
    assignment = TopK([40], [0.2], [0.3]).match(score, problem.targets.mask, priority)
    expected = one_to_many.assign(score[0, 0].tolist(), rules, permutation=permutation)
    assert assignment.pairs(0, 0) == sorted(expected)


def test_the_cap_is_random_and_follows_the_seed() -> None:
    problem = make_problem(seed=4, groups=1, counts=[4], queries=40, classes=3)
    score = distinct_scores(problem)
    matcher = TopK([40], [0.1], [0.3])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        assignment = matcher.match(score, problem.targets.mask)
        assert int(assignment.mask.sum()) == 10
        drawn.append(assignment.pairs(0, 0))
    # The lengths of the targets' lists follow from who was kept, so different draws give different lists.
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("candidates", ["official", "strict"])
def test_few_queries_n10(candidates: str) -> None:
    for queries, objects, k in ((1, 1, 6), (1, 5, 6), (2, 9, 4), (3, 0, 2), (5, 40, 6)):
        problem = make_problem(seed=queries, groups=2, counts=[objects, 0], queries=queries, classes=2)
        matcher = TopK([k], [0.2], [0.3], positive_fraction=None, candidates=candidates)  # type: ignore[arg-type]
        assignment = matcher(problem.prediction, problem.targets)
        check_assignment(assignment, problem.targets, queries, at_most=min(k, queries))
        assert assignment.query.shape[-1] == min(k, queries)


def test_threshold_of_one_leaves_only_forced_pairs_n12() -> None:
    problem = make_problem(seed=1, groups=1, counts=[3, 1], queries=30, classes=3)
    nothing = TopK([6], [1.0], [0.3], force_best=False)(problem.prediction, problem.targets)
    assert not nothing.mask.any()
    forced = TopK([6], [1.0], [0.3])(problem.prediction, problem.targets)
    assert 1 <= int(forced.mask[0, 0].sum()) <= 3
    assert int(forced.mask[0, 1].sum()) == 1


def test_images_without_objects_get_no_pair_n07() -> None:
    problem = make_problem(seed=1, groups=2, counts=[0, 0], queries=9, classes=3)
    assert not TopK([6])(problem.prediction, problem.targets).mask.any()


def test_extra_padding_changes_nothing() -> None:
    problem = make_problem(seed=5, groups=2, counts=[3, 1], queries=20, classes=3)
    wide = PaddedTargets(
        torch.cat((problem.targets.boxes, torch.rand(2, 6, 4)), 1),
        torch.cat((problem.targets.labels, torch.ones(2, 6, dtype=torch.int64)), 1),
        torch.cat((problem.targets.mask, torch.zeros(2, 6).bool()), 1),
        problem.targets.counts,
    )
    priority = torch.rand(2, 2, 20)
    matcher = TopK([4], [0.3], [0.3])
    narrow, padded = matcher(problem.prediction, problem.targets, priority), matcher(problem.prediction, wide, priority)
    for g in range(2):
        for b in range(2):
            assert narrow.pairs(g, b) == padded.pairs(g, b)


def test_no_gradient_and_pairs_by_falling_score() -> None:
    problem = make_problem(seed=6, groups=1, counts=[2], queries=30, classes=3)
    leaf = problem.prediction.logits.requires_grad_()
    assignment = TopK([5], [0.2], [0.3])(Prediction(leaf, problem.prediction.boxes), problem.targets)
    assert not assignment.score.requires_grad
    for row, keep in zip(assignment.score[0, 0], assignment.mask[0, 0], strict=True):
        kept = row[keep].tolist()
        assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("candidates", ["official", "strict"])
def test_equal_scores_are_ordered_by_query(candidates: Any) -> None:
    score = torch.full((1, 1, 2, 40), 0.5)
    score[0, 0, 0, 30] = score[0, 0, 0, 35] = 0.9
    matcher = TopK([5], positive_fraction=None, candidates=candidates)
    found = matcher.match(score, torch.ones(1, 2, dtype=torch.bool))
    assert found.mask[0, 0, 0].all()
    assert found.query[0, 0, 0].tolist() == [30, 35, 0, 1, 2]


def test_of_candidates_of_equal_priority_the_first_queries_are_kept() -> None:
    score, mask = torch.full((1, 1, 1, 40), 0.5), torch.ones(1, 1, dtype=torch.bool)
    found = TopK([40], positive_fraction=0.25).match(score, mask, torch.zeros(1, 1, 40))
    assert found.query[found.mask].tolist() == list(range(10))


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TopK([0])


@pytest.mark.parametrize("candidates", ["official", "strict"])
def test_the_config_passes_every_option_on(candidates: str) -> None:
    config = TopKConfig(
        k=3,
        threshold=0.7,
        class_weight=0.1,
        strict_threshold=True,
        force_best=False,
        positive_fraction=None,
        candidates=candidates,  # type: ignore[arg-type]
    )
    matcher = config.build()
    assert (matcher.k, matcher.threshold, matcher.class_weight) == ((3,), (0.7,), (0.1,))
    assert matcher.options == (True, False, None, candidates)
