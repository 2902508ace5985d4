"""Box formats and overlaps. All functions are pure, batched and differentiable where that makes sense."""

from __future__ import annotations

import torch
from torch import Tensor

# Smallest area a union or hull is divided by. Larger than zero, so that two boxes without area give overlap 0 and a
# finite gradient; far below any real area, so that no other value changes by it.
SMALLEST_AREA = 1e-20


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from (cx, cy, w, h) to corners (x1, y1, x2, y2), in the same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from corners (x1, y1, x2, y2) to (cx, cy, w, h), in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection and union areas of corner boxes whose leading axes broadcast."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - intersection
    return intersection, union


def iou_xyxy(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of corner boxes, elementwise over broadcast leading axes.

    Two boxes without area have overlap 0. The gradient flows to both.
    """
    intersection, union = _overlap(first, second)
    return intersection / union.clamp(min=SMALLEST_AREA)


def iou_and_giou_xyxy(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU (Rezatofighi et al., 2019) of corner boxes over broadcast leading axes.

    GIoU = IoU - (hull - union) / hull, in [-1, 1]. Boxes without area give finite values and gradients.
    """
    intersection, union = _overlap(first, second)
    iou = intersection / union.clamp(min=SMALLEST_AREA)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (high - low).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=SMALLEST_AREA)


def pairwise(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Give boxes [..., Q, 4] and [..., T, 4] the broadcast shapes [..., Q, 1, 4] and [..., 1, T, 4]."""
    return first.unsqueeze(-2), second.unsqueeze(-3)
