"""One stack of predictions that is supervised, and the loss terms it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lora_detr.losses.boxes import box_losses
from lora_detr.losses.classification import (
    class_overlap,
    class_targets,
    focal_loss,
    iou_aware_loss,
    quality_loss,
)
from lora_detr.losses.config import Classification, ClassificationConfig, TermWeights
from lora_detr.losses.report import KINDS, LossKey
from lora_detr.structures import Assignment, PaddedTargets, Prediction


@dataclass(frozen=True)
class Source:
    """A stack with its pairs and all that decides its losses.

    Attributes:
        keys: names of its terms, group by group in the order of ``KINDS``.
        prediction: logits [G, B, Q, K], boxes [G, B, Q, 4]; Q may be 0.
        assignment: [G, B, T, k].
        labels: int64 [B, T].
        classification: loss of the class logits.
        quality: soft target of a pair, its IoU or its matching score; not read by the focal loss.
        one_to_one: no query is paired twice.
        weights: of the terms, alike for all groups.
        scale: factor on the weights.
        normaliser: what the terms are divided by.
        second_best: factor on the soft targets of all pairs of a target but the one of the highest score.
        duplicate_weight: further weight, times the IoU, of the class logit of a query without a pair that overlaps a
            target of that class.
    """

    keys: tuple[LossKey, ...]
    prediction: Prediction
    assignment: Assignment
    labels: Tensor
    classification: Classification
    quality: Literal["score", "iou"]
    one_to_one: bool
    weights: TermWeights
    normaliser: float
    scale: float = 1.0
    second_best: float = 1.0
    duplicate_weight: float = 0.0

    @property
    def groups(self) -> int:
        """G."""
        return self.prediction.logits.shape[0]

    def term_weights(self) -> list[float]:
        """Return the weight of each term."""
        one = (self.weights.classification, self.weights.l1, self.weights.giou)
        return [weight * self.scale for weight in one] * self.groups


def source_keys(places: Sequence[tuple[str, int | None]]) -> tuple[LossKey, ...]:
    """Return the names of the terms of a stack whose groups are (source, layer)."""
    return tuple(LossKey(source, layer, kind) for source, layer in places for kind in KINDS)


def all_terms(sources: Sequence[Source], targets: PaddedTargets, constants: ClassificationConfig) -> Tensor:
    """Return the sums of all terms of all sources, not yet normalised, in the order of their keys: [n].

    Args:
        sources: stacks of one batch.
        targets: of the batch.
        constants: of the classification losses.
    """
    found = box_losses([(source.prediction.boxes, source.assignment) for source in sources], targets.boxes)
    pairs = zip(sources, found, strict=True)
    classes = torch.cat([_class_sums(source, losses.iou, targets, constants) for source, losses in pairs])
    sums = torch.cat((classes[None], torch.cat([losses.sums for losses in found], dim=1)))  # [kinds, groups of all]
    return sums.T.flatten()


def _class_sums(source: Source, iou: Tensor, targets: PaddedTargets, constants: ClassificationConfig) -> Tensor:
    """Return the classification losses of a stack whose pairs overlap by ``iou`` [G, B, T, k], summed: [G]."""
    soft = None
    if source.classification != "focal":
        soft = iou if source.quality == "iou" else source.assignment.score
        if source.second_best != 1:
            soft = soft * torch.where(_best_of_target(source.assignment), 1.0, source.second_best)
    logits = source.prediction.logits
    queries, classes = logits.shape[-2:]
    if queries == 0:
        return logits.flatten(1).sum(1)  # 0, with the graph kept
    spread = class_targets(source.assignment, source.labels, soft, queries, classes, one_to_one=source.one_to_one)
    emphasis = None
    if source.duplicate_weight:
        overlap = class_overlap(source.prediction, targets).masked_fill(spread.hard > 0, 0.0)
        emphasis = 1 + source.duplicate_weight * overlap
    if source.assignment.ignored is not None:
        counts = (~source.assignment.ignored[..., None]).to(logits.dtype)
        emphasis = counts if emphasis is None else emphasis * counts
    if source.classification == "focal":
        return focal_loss(logits, spread.hard, constants.focal_alpha, constants.focal_gamma, emphasis)
    if source.classification == "quality":
        return quality_loss(logits, spread, constants.negative_gamma, constants.quality_factor, emphasis)
    return iou_aware_loss(logits, spread, constants.focal_alpha, constants.focal_gamma, emphasis)


def _best_of_target(assignment: Assignment) -> Tensor:
    """Return a mask [G, B, T, k] of each target's pair of the highest score; of equal ones, the first."""
    score = assignment.score.masked_fill(~assignment.mask, -torch.inf)
    slots = torch.arange(score.shape[-1], device=score.device)
    return slots == score.argmax(-1, keepdim=True)
