"""How well every query fits every target of its image: a score to maximise, a cost to minimise. No gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_detr.ops.boxes import Corners, corners, iou, iou_and_giou
from lora_detr.structures import PaddedTargets, Prediction

# Of the focal class cost (with gamma 2), as all members of the family match by it (Deformable-DETR's code).
COST_FOCAL_ALPHA = 0.25


def target_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Pick from logits [G, B, Q, K] those of each target's class, labels [B, T], as [G, B, T, Q]."""
    groups, batch, queries, _ = logits.shape
    index = labels.view(1, batch, 1, -1).expand(groups, batch, queries, -1)
    return logits.gather(-1, index).transpose(-1, -2)


@torch.no_grad()
def overlap_score(prediction: Prediction, targets: PaddedTargets) -> Tensor:
    """Return the IoU of every predicted box with every target, float32 [G, B, T, Q]; boxes are [G, B, Q, 4]."""
    if prediction.overlap is not None:
        return prediction.overlap
    return iou(targets.corners, corners(prediction.boxes.float()).unsqueeze(-2))


def reference_boxes(prediction: Prediction) -> Tensor:
    """Return the boxes that predictions refine, float32 [G, B, Q, 4]; where they are not known, the predicted boxes."""
    return (prediction.boxes if prediction.reference is None else prediction.reference).float()


def holds_centre(target: Corners, boxes: Tensor) -> Tensor:
    """Return whether the centre of a box is inside a target, and not on its border.

    Args:
        target: corners [B, T, 1] of the targets.
        boxes: [G, B, Q, 4].

    Returns:
        bool [G, B, T, Q].
    """
    centre = boxes[..., None, :, :2]  # [G, B, 1, Q, 2]
    return ((centre > target.low) & (centre < target.high)).all(-1)


@torch.no_grad()
def matching_score(prediction: Prediction, targets: PaddedTargets, class_weight: Tensor) -> Tensor:
    """Return M = a c + (1 - a) IoU of every pair (LoRA-DETR Eq. 7), a score in [0, 1].

    Args:
        prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4].
        targets: T padded targets an image; their entries are meaningless where masked.
        class_weight: a, float [G].

    Returns:
        float32 [G, B, T, Q].
    """
    probability = target_logits(prediction.logits.float(), targets.labels).sigmoid()
    overlap = overlap_score(prediction, targets)
    weight = class_weight.view(-1, 1, 1, 1)
    return weight * probability + (1 - weight) * overlap


@torch.no_grad()
def aligned_score(prediction: Prediction, targets: PaddedTargets) -> Tensor:
    """Return class probability times IoU^4 of every pair (task-aligned, with the exponents of DEIM), in [0, 1].

    Args:
        prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4].
        targets: T padded targets an image.

    Returns:
        float32 [G, B, T, Q].
    """
    probability = target_logits(prediction.logits.float(), targets.labels).sigmoid()
    return probability * overlap_score(prediction, targets) ** 4


@torch.no_grad()
def matching_cost(
    prediction: Prediction,
    targets: PaddedTargets,
    class_cost: float,
    l1_cost: float,
    giou_cost: float,
    eps: float,
) -> Tensor:
    """Return DETR's matching cost of every pair: class (focal form) + L1 + negative GIoU, each weighted.

    Args:
        prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4].
        targets: T padded targets an image.
        class_cost: weight of the class cost; 0 leaves the logits unread.
        l1_cost: weight of the summed absolute difference of (cx, cy, w, h).
        giou_cost: weight of the negative GIoU.
        eps: added inside the logarithms.

    Returns:
        float32 [G, B, T, Q].
    """
    boxes = prediction.boxes.float()
    _, giou = iou_and_giou(targets.corners, corners(boxes).unsqueeze(-2))
    distance = torch.cdist(targets.boxes[None].expand(boxes.shape[0], -1, -1, -1), boxes, p=1)  # [G, B, T, Q]
    cost = l1_cost * distance - giou_cost * giou
    if class_cost != 0:
        p = target_logits(prediction.logits.float(), targets.labels).sigmoid()
        rest = 1 - p
        present = COST_FOCAL_ALPHA * rest**2 * torch.log(p + eps)  # both without their minus signs, which cancel
        absent = (1 - COST_FOCAL_ALPHA) * p**2 * torch.log(rest + eps)
        cost = cost + class_cost * (absent - present)
    return cost
