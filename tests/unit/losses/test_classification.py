"""Classification losses and their gradients against the plain re-statement."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.losses.classification import ClassTargets, class_targets, focal_loss, iou_aware_loss, quality_loss
from lora_detr.matchers import HungarianConfig, TopK
from lora_detr.matchers.conflicts import merge_one_to_one, without_duplicates
from lora_detr.structures import Assignment
from tests.reference import losses
from tests.unit.matchers.random_problems import Problem, make_problem, problems

PlainLoss = Callable[[Tensor, list[tuple[int, int]], list[int], list[float]], Tensor]
"""Of one image: logits [Q, K], pairs (query, target), labels of the targets, quality of each pair."""


def assigned(problem: Problem, k: int) -> Assignment:
    """Return an assignment in which queries may serve several targets."""
    return TopK([k], [0.2], [0.3], positive_fraction=None)(problem.prediction, problem.targets)


def any_quality(assignment: Assignment) -> Tensor:
    """Return numbers in [0, 1) in another order than the scores.

    Pairs of one query and class with equal scores have equal IoUs too, so their qualities never differ.
    """
    return assignment.score * 997 % 1


def ordered_pairs(assignment: Assignment, group: int, image: int) -> list[tuple[int, int, int]]:
    """Return (query, target, slot) by rising score; of equal scores the lower target comes last."""
    target, slot = assignment.mask[group, image].nonzero(as_tuple=True)
    query = assignment.query[group, image][target, slot]
    score = assignment.score[group, image][target, slot]
    triples = list(zip(score.tolist(), query.tolist(), target.tolist(), slot.tolist(), strict=True))
    return [(q, t, s) for _, q, t, s in sorted(triples, key=lambda one: (one[0], -one[2], -one[1]))]


def assert_equals_plain(
    value: Tensor, problem: Problem, assignment: Assignment, quality: Tensor, plain_loss: PlainLoss
) -> None:
    """Check a loss [G] and the gradient that it sends to the logits, image by image in float64.

    Args:
        value: of all images of a group.
        problem: its logits want a gradient.
        assignment: [G, B, T, k].
        quality: of its pairs, as the loss was given it.
        plain_loss: of one image.
    """
    value.sum().backward()
    logits = problem.prediction.logits
    plain = logits.detach().double().requires_grad_()
    for g in range(len(value)):
        expected = plain.sum() * 0
        for b, image in enumerate(problem.images):
            triples = ordered_pairs(assignment, g, b)
            pairs = [(q, t) for q, t, _ in triples]
            qualities = [quality[g, b, t, slot].item() for _, t, slot in triples]
            expected = expected + plain_loss(plain[g, b], pairs, image.labels.tolist(), qualities)
        assert value[g].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        expected.backward()
    assert logits.grad is not None and plain.grad is not None
    torch.testing.assert_close(logits.grad, plain.grad.float(), rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6))
def test_focal_equals_the_plain_loss(problem: Problem, k: int) -> None:
    logits = problem.prediction.logits.requires_grad_()
    assignment = assigned(problem, k)
    hard = class_targets(assignment, problem.targets.labels, None, *logits.shape[-2:]).hard

    def plain(own: Tensor, pairs: list[tuple[int, int]], labels: list[int], qualities: list[float]) -> Tensor:
        return losses.focal(own, pairs, labels)

    assert_equals_plain(focal_loss(logits, hard, 0.25, 2.0), problem, assignment, assignment.score, plain)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6), st.booleans(), st.sampled_from([0.25, 1.0]), st.sampled_from([1.5, 2.0]))
def test_quality_equals_the_plain_loss(problem: Problem, k: int, by_score: bool, factor: float, gamma: float) -> None:
    logits = problem.prediction.logits.requires_grad_()
    assignment = assigned(problem, k)
    quality = assignment.score if by_score else any_quality(assignment)
    spread = class_targets(assignment, problem.targets.labels, quality, *logits.shape[-2:])

    def plain(own: Tensor, pairs: list[tuple[int, int]], labels: list[int], qualities: list[float]) -> Tensor:
        return losses.assignment_quality(own, pairs, labels, qualities, negative_gamma=gamma, factor=factor)

    assert_equals_plain(quality_loss(logits, spread, gamma, factor), problem, assignment, quality, plain)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6), st.sampled_from([0.25, 0.6]), st.sampled_from([2.0, 1.0]))
def test_iou_aware_equals_the_plain_loss(problem: Problem, k: int, alpha: float, gamma: float) -> None:
    logits = problem.prediction.logits.requires_grad_()
    assignment = assigned(problem, k)
    quality = any_quality(assignment)
    spread = class_targets(assignment, problem.targets.labels, quality, *logits.shape[-2:])

    def plain(own: Tensor, pairs: list[tuple[int, int]], labels: list[int], qualities: list[float]) -> Tensor:
        return losses.iou_aware(own, pairs, labels, qualities, focal_alpha=alpha, focal_gamma=gamma)

    assert_equals_plain(iou_aware_loss(logits, spread, alpha, gamma), problem, assignment, quality, plain)


def test_iou_aware_by_hand() -> None:
    """A pair of quality t weighs t, an entry without one (1 - alpha) p^gamma; all at probability 1/2."""
    hard, soft = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.6, 0.0]]]])
    logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
    value = iou_aware_loss(logits, ClassTargets(hard, soft), 0.25, 2.0)
    assert value.item() == pytest.approx((0.6 + 0.75 * 0.25) * 0.6931472)
    value.sum().backward()
    assert logits.grad is not None
    # No gradient through either weight: weight * (p - target).
    assert logits.grad.flatten().tolist() == pytest.approx([0.6 * (0.5 - 0.6), 0.75 * 0.25 * 0.5])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6), st.booleans(), st.booleans())
def test_assignments_without_conflict_need_no_resolving(problem: Problem, k: int, merged: bool, soft: bool) -> None:
    """Where no query is paired twice, saying so saves operations and changes no bit."""
    matcher = TopK([k], [0.2], [0.3], positive_fraction=None)
    labels, shape = problem.targets.labels, problem.prediction.logits.shape[-2:]
    assignment = matcher(problem.prediction, problem.targets)
    if merged:
        one_to_one = HungarianConfig().build()(problem.prediction, problem.targets)
        score = matcher.score(problem.prediction, problem.targets)
        assignment = merge_one_to_one(assignment, one_to_one, score)
    else:
        assignment = without_duplicates(assignment, problem.num_queries)
    quality = assignment.score if soft else None
    resolved = class_targets(assignment, labels, quality, *shape)
    direct = class_targets(assignment, labels, quality, *shape, one_to_one=True)
    assert torch.equal(resolved.hard, direct.hard)
    assert torch.equal(resolved.soft, direct.soft)


def test_query_with_two_targets_of_different_classes() -> None:
    """Hard only at the class of the better pair; the other class keeps its quality as soft target."""
    assignment = Assignment(
        torch.tensor([[[[1], [1]]]]), torch.tensor([[[[0.6], [0.9]]]]), torch.ones(1, 1, 2, 1).bool()
    )
    spread = class_targets(assignment, torch.tensor([[0, 2]]), assignment.score, num_queries=2, num_classes=3)
    assert spread.hard[0, 0].tolist() == [[0, 0, 0], [0, 0, 1]]
    torch.testing.assert_close(spread.soft[0, 0], torch.tensor([[0, 0, 0], [0.6, 0, 0.9]]))


def test_query_with_two_targets_of_one_class_keeps_the_quality_of_the_better_pair() -> None:
    assignment = Assignment(
        torch.tensor([[[[0], [0]]]]), torch.tensor([[[[0.9], [0.6]]]]), torch.ones(1, 1, 2, 1).bool()
    )
    quality = torch.tensor([[[[0.3], [0.8]]]])
    spread = class_targets(assignment, torch.tensor([[1, 1]]), quality, num_queries=1, num_classes=2)
    torch.testing.assert_close(spread.soft[0, 0], torch.tensor([[0.0, 0.3]]))
    assert spread.hard[0, 0].tolist() == [[0, 1]]


def test_no_gradient_flows_through_quality_or_weight() -> None:
    problem = make_problem(seed=1, groups=1, counts=[3], queries=8, classes=2)
    assignment = assigned(problem, 3)
    quality = assignment.score.clone().requires_grad_()
    logits = problem.prediction.logits.requires_grad_()
    spread = class_targets(assignment, problem.targets.labels, quality, *logits.shape[-2:])
    quality_loss(logits, spread, 1.5, 0.25).sum().backward()
    assert quality.grad is None
    # With the weight a constant, d loss / d logit of an unpaired entry is factor * p^gamma * p.
    free = (spread.soft == 0) & (spread.hard == 0)
    p = logits.detach().sigmoid()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[free], 0.25 * (p**2.5)[free], rtol=1e-4, atol=1e-7)


def test_without_objects_only_background_counts_n07() -> None:
    problem = make_problem(seed=1, groups=2, counts=[0], queries=5, classes=3)
    logits = problem.prediction.logits.requires_grad_()
    spread = class_targets(assigned(problem, 3), problem.targets.labels, None, *logits.shape[-2:])
    assert not spread.hard.any()
    value = focal_loss(logits, spread.hard, 0.25, 2.0)
    value.sum().backward()
    assert value.isfinite().all() and (value > 0).all()
    assert logits.grad is not None and (logits.grad > 0).all()


@pytest.mark.parametrize("magnitude", [60.0, 1e4])
def test_saturated_logits_stay_finite(magnitude: float) -> None:
    problem = make_problem(seed=1, groups=1, counts=[2], queries=6, classes=3)
    assignment = assigned(problem, 2)
    logits = (problem.prediction.logits.sign() * magnitude).requires_grad_()
    spread = class_targets(assignment, problem.targets.labels, assignment.score, *logits.shape[-2:])
    total = focal_loss(logits, spread.hard, 0.25, 2.0) + quality_loss(logits, spread, 1.5, 0.25)
    total = total + iou_aware_loss(logits, spread, 0.25, 2.0)
    total.sum().backward()
    assert total.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()
