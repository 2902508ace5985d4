"""Box losses, elementwise on the pairs of an assignment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_detr.ops.boxes import cxcywh_to_xyxy, iou_and_giou_xyxy
from lora_detr.structures import Assignment


@dataclass(frozen=True)
class BoxLosses:
    """Sums over the pairs of each group, and the overlap of each pair.

    Attributes:
        l1: [G].
        giou: [G], sum of 1 - GIoU.
        iou: [G, B, T, k], detached; meaningless where masked.
    """

    l1: Tensor
    giou: Tensor
    iou: Tensor


def box_losses(boxes: Tensor, targets: Tensor, assignment: Assignment) -> BoxLosses:
    """Compare the boxes of paired queries with their targets.

    A query that is paired twice counts twice. Groups without pairs give 0 and keep the graph.

    Args:
        boxes: predicted, [G, B, Q, 4].
        targets: [B, T, 4].
        assignment: [G, B, T, k].
    """
    index = assignment.query.flatten(2)[..., None].expand(-1, -1, -1, 4)  # [G, B, T*k, 4]
    paired = boxes.gather(2, index).view(*assignment.query.shape, 4)
    wanted = targets[None, :, :, None]  # [1, B, T, 1, 4]
    iou, giou = iou_and_giou_xyxy(cxcywh_to_xyxy(paired), cxcywh_to_xyxy(wanted))
    distance = (paired - wanted).abs().sum(-1)
    return BoxLosses(
        torch.where(assignment.mask, distance, 0.0).flatten(1).sum(1),
        torch.where(assignment.mask, 1 - giou, 0.0).flatten(1).sum(1),
        iou.detach(),
    )
