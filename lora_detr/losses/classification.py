"""Classification losses over a stack, from pairs instead of from loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_detr.matchers.conflicts import best_pair_of_query
from lora_detr.ops.boxes import corners, iou
from lora_detr.structures import Assignment, PaddedTargets, Prediction


@dataclass(frozen=True)
class ClassTargets:
    """What each class logit is trained on.

    Attributes:
        hard: float [G, B, Q, K], 1 at the class of a paired query (of its best pair, if it has several), else 0.
        soft: float [G, B, Q, K], the quality of the pair at the class of each pair, else 0.
    """

    hard: Tensor
    soft: Tensor


@torch.no_grad()
def class_targets(
    assignment: Assignment,
    labels: Tensor,
    quality: Tensor | None,
    num_queries: int,
    num_classes: int,
    one_to_one: bool = False,
) -> ClassTargets:
    """Spread pairs over the class logits.

    A query paired with targets of different classes is hard only at the class of its best pair, but keeps a soft
    target at each; paired twice within a class, the quality of the pair with the higher score stays.

    Args:
        assignment: [G, B, T, k].
        labels: int64 [B, T].
        quality: [G, B, T, k] in [0, 1]; None when no soft target is wanted, ``soft`` is ``hard`` then.
        num_queries: Q.
        num_classes: K.
        one_to_one: no query is paired twice, so that there is no conflict to resolve.
    """
    groups, batch = assignment.mask.shape[:2]
    cells = (assignment.query * num_classes + labels.view(1, batch, -1, 1)).flatten(2)  # [G, B, P] into Q * K
    mask = assignment.mask.flatten(2)
    # The authors' code writes pairs by rising score, so the best one is what remains.
    best = mask if one_to_one else best_pair_of_query(assignment, num_queries).flatten(2)
    empty = torch.zeros((groups, batch, num_queries * num_classes), device=labels.device)
    hard = empty.scatter_add(-1, cells, best.float())
    shape = (groups, batch, num_queries, num_classes)
    if quality is None:
        hard = hard.view(shape)
        return ClassTargets(hard, hard)
    if one_to_one:
        soft = empty.scatter_add(-1, cells, torch.where(mask, quality.flatten(2), 0.0))
        return ClassTargets(hard.view(shape), soft.view(shape))
    score = assignment.score.flatten(2).masked_fill(~mask, -torch.inf)
    highest = (empty - torch.inf).scatter_reduce(-1, cells, score, "amax")
    wins = mask & (score == highest.gather(-1, cells))
    soft = empty.scatter_reduce(-1, cells, quality.flatten(2).masked_fill(~wins, 0.0), "amax")
    return ClassTargets(hard.view(shape), soft.view(shape))


def focal_loss(
    logits: Tensor, hard: Tensor, focal_alpha: float, focal_gamma: float, emphasis: Tensor | None = None
) -> Tensor:
    """Return the sigmoid focal loss (Lin et al., 2017) of each group, summed: [G].

    Args:
        logits: [G, B, Q, K].
        hard: [G, B, Q, K] of zeros and ones.
        focal_alpha: weight of positives; negatives have the rest.
        focal_gamma: exponent of the modulating factor, through which gradient flows.
        emphasis: factor on the loss of each logit, [G, B, Q, K]; None for 1.
    """
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, hard, reduction="none")
    miss = p + hard - 2 * p * hard  # 1 - p at positives, p at negatives
    balance = focal_alpha * hard + (1 - focal_alpha) * (1 - hard)
    return _summed(balance * entropy * miss**focal_gamma, emphasis)


def quality_loss(
    logits: Tensor, targets: ClassTargets, negative_gamma: float, factor: float, emphasis: Tensor | None = None
) -> Tensor:
    """Return the assignment-quality loss (LoRA-DETR Eq. 8) of each group, summed: [G].

    BCE against the quality, weighted 1 at hard positives and p^gamma elsewhere; no gradient through the weight.

    Args:
        logits: [G, B, Q, K].
        targets: hard and soft targets of the same shape.
        negative_gamma: gamma of Eq. 8.
        factor: multiplies positives and negatives alike (0.25 in the official code; absent from the paper).
        emphasis: as in ``focal_loss``.
    """
    # As in the authors' code: here the weight only ranks negatives; in the focal loss it has a gradient.
    weight = (logits.detach().sigmoid() ** negative_gamma).masked_fill(targets.hard > 0, 1.0)
    entropy = F.binary_cross_entropy_with_logits(logits, targets.soft, weight, reduction="none")
    return factor * _summed(entropy, emphasis)


def iou_aware_loss(
    logits: Tensor, targets: ClassTargets, focal_alpha: float, focal_gamma: float, emphasis: Tensor | None = None
) -> Tensor:
    """Return the IoU-aware classification loss of Relation-DETR of each group, summed: [G].

    BCE against the quality, weighted by the quality itself at hard positives and by (1 - alpha) p^gamma elsewhere; no
    gradient through the weight.

    Args:
        logits: [G, B, Q, K].
        targets: hard and soft targets of the same shape.
        focal_alpha: negatives weigh 1 - alpha.
        focal_gamma: exponent of the weight of negatives.
        emphasis: as in ``focal_loss``.
    """
    negative = (1 - focal_alpha) * logits.detach().sigmoid() ** focal_gamma
    weight = torch.where(targets.hard > 0, targets.soft, negative)
    return _summed(F.binary_cross_entropy_with_logits(logits, targets.soft, weight, reduction="none"), emphasis)


def _summed(losses: Tensor, emphasis: Tensor | None) -> Tensor:
    return (losses if emphasis is None else losses * emphasis).flatten(1).sum(1)


@torch.no_grad()
def class_overlap(prediction: Prediction, targets: PaddedTargets) -> Tensor:
    """Return the largest IoU of each query with a target of each class, 0 where there is none: [G, B, Q, K].

    Args:
        prediction: logits [G, B, Q, K], of which only the shape is read; boxes [G, B, Q, 4].
        targets: of the batch.
    """
    overlap = iou(targets.corners, corners(prediction.boxes.float()).unsqueeze(-2))  # [G, B, T, Q]
    overlap = overlap.masked_fill(~targets.mask[None, :, :, None], 0.0).transpose(-1, -2)
    classes = targets.labels[None, :, None].expand(overlap.shape)
    return torch.zeros_like(prediction.logits, dtype=torch.float32).scatter_reduce(-1, classes, overlap, "amax")
