"""Box losses, elementwise on the pairs of several assignments at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_detr.ops.boxes import corners, iou_and_giou
from lora_detr.structures import Assignment


@dataclass(frozen=True)
class BoxLosses:
    """Sums over the pairs of each group, and the overlap of each pair.

    Attributes:
        sums: [2, G]: the L1 distances, and 1 - GIoU.
        iou: [G, B, T, k], detached; meaningless where masked.
    """

    sums: Tensor
    iou: Tensor


def box_losses(sources: Sequence[tuple[Tensor, Assignment]], targets: Tensor) -> list[BoxLosses]:
    """Compare the boxes of paired queries with their targets, all sources in one pass.

    A query that is paired twice counts twice. Groups without pairs give 0 and keep the graph.

    Args:
        sources: predicted boxes [G, B, Q, 4] with their assignment [G, B, T, k]; G, Q and k differ between sources.
        targets: [B, T, 4], the same for all sources.

    Returns:
        The losses of each source.
    """
    paired = torch.cat([_paired_boxes(boxes, assignment) for boxes, assignment in sources])
    batch, width, _ = targets.shape
    slots = targets.view(1, batch, width, 1, 4)
    wanted = torch.cat([slots.expand(*assignment.query.shape, 4).reshape(-1, 4) for _, assignment in sources])
    iou, giou = iou_and_giou(corners(paired), corners(wanted))
    terms = torch.stack(((paired - wanted).abs().sum(-1), 1 - giou))  # [2, pairs of all sources]
    terms = torch.where(torch.cat([assignment.mask.flatten() for _, assignment in sources]), terms, 0.0)
    sizes = [assignment.mask.numel() for _, assignment in sources]
    results = []
    # Detached: quality is a target, and classification losses must not move boxes to meet it.
    parts = zip(terms.split(sizes, dim=1), iou.detach().split(sizes), sources, strict=True)
    for term, overlap, (_, assignment) in parts:
        sums = term.view(2, assignment.mask.shape[0], -1).sum(-1)
        results.append(BoxLosses(sums, overlap.view(assignment.mask.shape)))
    return results


def _paired_boxes(boxes: Tensor, assignment: Assignment) -> Tensor:
    """Return the predicted box of each slot of an assignment, [G * B * T * k, 4]."""
    if boxes.shape[2] == 0:  # a group without queries: any box does, since every slot is masked
        return boxes.sum() + boxes.new_zeros((assignment.query.numel(), 4))
    index = assignment.query.flatten(2)[..., None].expand(-1, -1, -1, 4)  # [G, B, T*k, 4]
    return boxes.gather(2, index).view(-1, 4)
