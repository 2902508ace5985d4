"""Box losses of pairs against the plain re-statement, degenerate boxes included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_detr.losses.boxes import box_losses
from lora_detr.matchers import TopK
from lora_detr.structures import Assignment
from tests.reference import losses
from tests.reference.boxes import iou
from tests.unit.matchers.random_problems import Problem, make_problem, problems


def one_pair(query: int) -> Assignment:
    return Assignment(torch.full((1, 1, 1, 1), query), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1).bool())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 6))
def test_values_and_gradients_equal_the_plain_losses(problem: Problem, k: int) -> None:
    boxes = problem.prediction.boxes.requires_grad_()
    assignment = TopK([k], [0.2], [0.3], positive_fraction=None)(problem.prediction, problem.targets)
    found = box_losses([(boxes, assignment)], problem.targets.boxes)[0]
    found_l1, found_giou = found.sums
    (found_l1 + 2 * found_giou).sum().backward()
    plain = boxes.detach().double().requires_grad_()
    for g in range(boxes.shape[0]):
        l1 = giou = plain.sum() * 0
        for b, target in enumerate(problem.images):
            image = losses.Image(target.labels.tolist(), target.boxes.tolist())
            pairs = assignment.pairs(g, b)
            l1 = l1 + losses.box_l1(plain[g, b], pairs, image)
            giou = giou + losses.box_giou(plain[g, b], pairs, image)
            for t, slot in assignment.mask[g, b].nonzero().tolist():
                query = int(assignment.query[g, b, t, slot])
                overlap = iou(boxes[g, b, query].tolist(), image.boxes[t])
                assert found.iou[g, b, t, slot].item() == pytest.approx(overlap, abs=1e-5)
        assert found_l1[g].item() == pytest.approx(l1.item(), rel=1e-5, abs=1e-5)
        assert found_giou[g].item() == pytest.approx(giou.item(), rel=1e-5, abs=1e-5)
        (l1 + 2 * giou).backward()
    assert boxes.grad is not None and plain.grad is not None
    torch.testing.assert_close(boxes.grad, plain.grad.float(), rtol=1e-3, atol=1e-4)
    assert not found.iou.requires_grad


@pytest.mark.parametrize(
    ("box", "target"),
    [
        ([0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]),
        ([0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.0]),
        ([0.5, 0.5, 0.0, 0.3], [0.5, 0.5, 0.2, 0.2]),
        ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]),
        ([0.5, 0.5, 1e-30, 1e-30], [0.5, 0.5, 1e-30, 1e-30]),
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_degenerate_boxes_n04(box: list[float], target: list[float]) -> None:
    boxes = torch.tensor(box).view(1, 1, 1, 4).requires_grad_()
    l1, giou = box_losses([(boxes, one_pair(0))], torch.tensor(target).view(1, 1, 4))[0].sums
    (l1 + giou).sum().backward()
    assert l1.isfinite().all() and giou.isfinite().all()
    assert 0 <= giou.item() <= 2 + 1e-6
    assert boxes.grad is not None and boxes.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_saturated_box_logits_n04(logit: float) -> None:
    """Width and height come from a sigmoid: saturated logits make boxes without area."""
    logits = torch.full((1, 1, 2, 4), logit, requires_grad=True)
    l1, giou = box_losses([(logits.sigmoid(), one_pair(1))], torch.tensor([[[0.4, 0.4, 0.2, 0.2]]]))[0].sums
    (5 * l1 + 2 * giou).sum().backward()
    assert giou.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_groups_without_pairs_give_zero_and_keep_the_graph_n07() -> None:
    problem = make_problem(seed=1, groups=2, counts=[0, 0], queries=4, classes=2)
    boxes = problem.prediction.boxes.requires_grad_()
    assignment = TopK([3])(problem.prediction, problem.targets)
    l1, giou = box_losses([(boxes, assignment)], problem.targets.boxes)[0].sums
    assert not l1.any() and not giou.any()
    (l1 + giou).sum().backward()
    assert boxes.grad is not None and not boxes.grad.any()


def test_a_query_with_two_pairs_counts_twice() -> None:
    boxes = torch.rand(1, 1, 3, 4)
    targets = torch.rand(1, 2, 4)
    twice = Assignment(torch.ones(1, 1, 2, 1, dtype=torch.int64), torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1) > 0)
    expected = (boxes[0, 0, 1] - targets[0]).abs().sum()
    torch.testing.assert_close(box_losses([(boxes, twice)], targets)[0].sums[0, 0], expected)
