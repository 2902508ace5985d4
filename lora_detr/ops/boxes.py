"""Overlap of boxes. All functions are pure, batched and differentiable.

Overlaps are computed on corners that are split once and shared, since matching and losses compare the same boxes over
and over: a handful of tensor operations a call is what their speed depends on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Smallest area a union or hull is divided by. Larger than zero, so that two boxes without area give overlap 0 and a
# finite gradient; far below any real area, so that no other value changes by it.
SMALLEST_AREA = 1e-20


@dataclass(frozen=True)
class Corners:
    """Boxes as corners.

    Attributes:
        low: [..., 2], (x1, y1).
        high: [..., 2], (x2, y2), in the same unit.
        area: [...].
    """

    low: Tensor
    high: Tensor
    area: Tensor

    def unsqueeze(self, dim: int) -> Corners:
        """Insert an axis of length 1 among the leading axes; ``dim`` is negative and counts from ``area``'s last."""
        return Corners(self.low.unsqueeze(dim - 1), self.high.unsqueeze(dim - 1), self.area.unsqueeze(dim))


def corners(boxes: Tensor) -> Corners:
    """Split boxes [..., 4] in (cx, cy, w, h) into corners and areas."""
    centre, size = boxes.chunk(2, dim=-1)
    half = 0.5 * size
    low, high = centre - half, centre + half
    return Corners(low, high, _area(high - low))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from (cx, cy, w, h) to corners (x1, y1, x2, y2), in the same unit."""
    split = corners(boxes)
    return torch.cat((split.low, split.high), dim=-1)


def iou(first: Corners, second: Corners) -> Tensor:
    """Return the intersection over union, elementwise over broadcast leading axes; 0 for two boxes without area."""
    intersection, union = _overlap(first, second)
    return intersection / union.clamp(min=SMALLEST_AREA)


def iou_and_giou(first: Corners, second: Corners) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU (Rezatofighi et al., 2019), elementwise over broadcast leading axes.

    GIoU = IoU - (hull - union) / hull, in [-1, 1]. Boxes without area give finite values and gradients.
    """
    intersection, union = _overlap(first, second)
    overlap = intersection / union.clamp(min=SMALLEST_AREA)
    hull = _area(torch.maximum(first.high, second.high) - torch.minimum(first.low, second.low))
    return overlap, overlap - (hull - union) / hull.clamp(min=SMALLEST_AREA)


def _overlap(first: Corners, second: Corners) -> tuple[Tensor, Tensor]:
    """Return intersection and union areas."""
    extent = torch.minimum(first.high, second.high) - torch.maximum(first.low, second.low)
    intersection = _area(extent.clamp(min=0))
    return intersection, first.area + second.area - intersection


def _area(extent: Tensor) -> Tensor:
    """Multiply width and height, [..., 2]; ``prod`` would copy to the host in its backward pass."""
    width, height = extent.unbind(-1)
    return width * height
