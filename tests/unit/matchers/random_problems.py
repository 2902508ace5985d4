"""Random matching problems of every awkward size, for property tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.structures import PaddedTargets, Prediction, Target


@dataclass(frozen=True)
class Problem:
    """Predictions [G, B, Q, ...] and the targets of B images."""

    prediction: Prediction
    targets: PaddedTargets
    images: tuple[Target, ...]

    @property
    def num_queries(self) -> int:
        return self.prediction.boxes.shape[-2]

    def plain(self, g: int, b: int) -> tuple[list[Any], ...]:
        """Return one problem as numbers: logits, boxes, labels of the targets, boxes of the targets."""
        prediction, image = self.prediction, self.images[b]
        tensors = (prediction.logits[g, b], prediction.boxes[g, b], image.labels, image.boxes)
        return tuple(tensor.tolist() for tensor in tensors)


def draw_boxes(*shape: int) -> Tensor:
    """Return random boxes that lie inside the image, [..., 4]."""
    size = 0.05 + 0.6 * torch.rand(*shape, 2)
    return torch.cat((size / 2 + (1 - size) * torch.rand(*shape, 2), size), dim=-1)


def draw_targets(counts: list[int], classes: int) -> tuple[Target, ...]:
    """Return one target an image, with the given numbers of objects."""
    return tuple(
        Target(draw_boxes(count), torch.randint(classes, (count,)), image_id, (64, 64))
        for image_id, count in enumerate(counts)
    )


def near_targets(boxes: Tensor, images: tuple[Target, ...]) -> Tensor:
    """Move about two thirds of the boxes [G, B, Q, 4] next to a target of their image, to pass thresholds."""
    boxes = boxes.clone()
    for b, image in enumerate(images):
        if len(image.labels):
            chosen = image.boxes[torch.randint(len(image.labels), boxes[:, b].shape[:-1])]
            moved = chosen * (1 + 0.15 * torch.randn_like(chosen))
            boxes[:, b] = torch.where(torch.rand(moved.shape[:-1])[..., None] < 0.66, moved, boxes[:, b])
    return boxes.clamp(0.001, 0.999)


def make_problem(seed: int, groups: int, counts: list[int], queries: int, classes: int) -> Problem:
    """Draw a problem from a seed."""
    torch.manual_seed(seed)
    images = draw_targets(counts, classes)
    boxes = near_targets(draw_boxes(groups, len(counts), queries), images)
    logits = 2 * torch.randn(groups, len(counts), queries, classes)
    return Problem(Prediction(logits, boxes), PaddedTargets.from_targets(images), images)


def check_stack(members: Sequence[Any]) -> None:
    """Assert that matchers run as one give what each gives alone, with two groups each."""
    problem = make_problem(seed=1, groups=2 * len(members), counts=[4, 0, 2], queries=30, classes=3)
    prediction = problem.prediction
    together = type(members[0]).stacked(members, 2)(prediction, problem.targets)
    for n, member in enumerate(members):
        part = slice(2 * n, 2 * n + 2)
        alone = member(Prediction(prediction.logits[part], prediction.boxes[part]), problem.targets)
        for g in range(2):
            assert [together.pairs(2 * n + g, b) for b in range(3)] == [alone.pairs(g, b) for b in range(3)]


def coarse(boxes: Tensor) -> Tensor:
    """Move boxes [..., 4] to a grid on which many distances and overlaps are equal, exactly; some have no area."""
    return torch.cat(((boxes[..., :2] * 16).round() / 16, (boxes[..., 2:] * 8).round() / 8), -1)


def thousand_problems() -> Iterator[Problem]:
    """Give 1,000 problems of one layer and one image, 100 at a time: of every size, every other on a grid."""
    for seed in range(10):
        counts = [[4, 0, 2, 3, 1], [7, 1, 2, 0, 5]][seed % 3 == 0]
        problem = make_problem(seed, groups=20, counts=counts, queries=[12, 1, 5, 20, 3][seed % 5], classes=3)
        boxes, images = problem.prediction.boxes, problem.images
        reference = near_targets(draw_boxes(*boxes.shape[:-1]), images)
        if seed % 2:
            boxes, reference = coarse(boxes), coarse(reference)
            images = tuple(replace(image, boxes=coarse(image.boxes)) for image in images)
        prediction = Prediction(problem.prediction.logits, boxes, reference)
        yield Problem(prediction, PaddedTargets.from_targets(images), images)


@st.composite
def problems(draw: st.DrawFn, groups: int | None = None) -> Problem:
    """Any size from one query and no object on: more objects than queries, empty images, empty batches."""
    return make_problem(
        seed=draw(st.integers(0, 2**31)),
        groups=draw(st.integers(1, 3)) if groups is None else groups,
        counts=draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)),
        queries=draw(st.integers(1, 14)),
        classes=draw(st.integers(1, 4)),
    )
