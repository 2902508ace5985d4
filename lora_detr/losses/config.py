"""Settings of the criterion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_detr.config.base import Strict
from lora_detr.matchers import HungarianConfig


class TermWeights(Strict):
    """Weights of the three terms of a source; the same at every decoder layer."""

    classification: float = Field(2.0, ge=0)
    """Weight of the classification loss."""
    l1: float = Field(5.0, ge=0)
    """Weight of the L1 box loss."""
    giou: float = Field(2.0, ge=0)
    """Weight of the GIoU box loss."""


class ClassificationConfig(Strict):
    """Constants of the two classification losses."""

    focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of positives in the focal loss."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss."""
    negative_gamma: float = Field(1.5, ge=0)
    """gamma of Eq. 8: exponent of the weight of negatives in the assignment-quality loss."""
    quality_factor: float = Field(0.25, gt=0)
    """Factor on the whole assignment-quality loss: 0.25 in the official code, 1 in the paper."""


class PrimaryLossConfig(Strict):
    """The primary path: matched one to one at every decoder layer."""

    classification: Literal["focal", "quality"] = "focal"
    """Focal loss, or the assignment-quality loss with the IoU as quality."""
    weights: TermWeights = TermWeights()
    """Weights of the terms."""
    matcher: HungarianConfig = HungarianConfig()
    """One-to-one matching."""


class BranchLossConfig(Strict):
    """The branches: each matched one to many by its own matcher at every decoder layer."""

    classification: Literal["focal", "quality"] = "quality"
    """Focal loss, or the assignment-quality loss."""
    quality: Literal["score", "iou"] = "score"
    """Soft target of a pair: its matching score (Deformable family) or its IoU (Relation family)."""
    weights: TermWeights = TermWeights()
    """Weights of the terms, divided by the number of branches."""
    merge_one_to_one: bool = False
    """Add the primary's pairs of the same layer to each branch's pairs."""
    duplicates: Literal["official", "clean"] = "official"
    """A query paired with several targets: all pairs count (official code), or only the best."""


class EncoderLossConfig(Strict):
    """The proposals of the first stage: one foreground class, matched one to one."""

    weights: TermWeights = TermWeights()
    """Weights of the terms."""
    match_to: Literal["anchors", "predictions"] = "anchors"
    """Boxes that targets are matched to."""
    matcher: HungarianConfig = HungarianConfig(class_cost=0.0)
    """One-to-one matching."""


class CriterionConfig(Strict):
    """All losses of a training step."""

    primary: PrimaryLossConfig = PrimaryLossConfig()
    """One-to-one supervision of the primary path."""
    branch: BranchLossConfig = BranchLossConfig()
    """One-to-many supervision of the branches."""
    encoder: EncoderLossConfig = EncoderLossConfig()
    """Supervision of the proposals."""
    constants: ClassificationConfig = ClassificationConfig()
    """Constants of the classification losses."""
    normaliser: Literal["exact", "official"] = "exact"
    """``exact``: max(total objects of all ranks, 1) / ranks, so that loss and gradient do not depend on the number of
    ranks; ``official``: max(total / ranks, 1)."""

    def normalise(self, total: float, world_size: int) -> float:
        """Return what every loss is divided by, from the number of objects on all ranks."""
        return max(total, 1.0) / world_size if self.normaliser == "exact" else max(total / world_size, 1.0)
