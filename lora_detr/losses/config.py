"""Settings of the criterion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_detr.config.base import Strict
from lora_detr.losses.normaliser import Normaliser, Rule
from lora_detr.matchers import HungarianConfig, MatcherConfig, TopKConfig
from lora_detr.structures import ClassLayer

Classification = Literal["focal", "quality", "iou-aware"]
"""``focal``; ``quality``, the assignment-quality loss (Eq. 8); ``iou-aware``, that of Relation-DETR."""


Share = Annotated[float, Field(ge=0, le=1)]


class TermWeights(Strict):
    """Weights of the three terms of a source; the same at every decoder layer."""

    # Deformable-DETR's 2, 5, 2. Class weights that differ are listed in docs/deviations.md.
    classification: float = Field(2.0, ge=0)
    """Weight of the classification loss."""
    l1: float = Field(5.0, ge=0)
    """Weight of the L1 box loss."""
    giou: float = Field(2.0, ge=0)
    """Weight of the GIoU box loss."""

    def by_kind(self) -> dict[str, float]:
        """Return the weights by the names that terms have in reports and logs."""
        return {"class": self.classification, "l1": self.l1, "giou": self.giou}


class ClassificationConfig(Strict):
    """Constants of the classification losses."""

    # Both as in Lin et al. (2017) and every DETR of the family.
    focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of positives in the focal loss; negatives have the rest, in the IoU-aware loss too."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss, and of the weight of negatives in the IoU-aware one."""
    # Paper, below Eq. 8.
    negative_gamma: float = Field(1.5, ge=0)
    """gamma of Eq. 8: exponent of the weight of negatives in the assignment-quality loss."""
    quality_factor: float = Field(0.25, gt=0)
    """Factor on the whole assignment-quality loss: 0.25 in the official code, 1 in the paper."""


class PrimaryLossConfig(Strict):
    """The primary path: matched one to one at every decoder layer."""

    classification: Classification = "focal"
    """Focal loss, the assignment-quality loss with the IoU as quality, or the IoU-aware loss."""
    weights: TermWeights = TermWeights()
    """Weights of the terms."""
    matcher: HungarianConfig = HungarianConfig()
    """One-to-one matching."""
    match_layers: Literal["each", "last"] = "each"
    """Match every decoder layer by its own predictions, or give all layers the pairs of the last one."""
    duplicate_weight: float = Field(0.0, ge=0)
    """Further weight of the classification loss where a query without an object overlaps one of that class.

    Its loss at that class is multiplied by 1 + this times the IoU: a second detection of an object counts for more than
    background does.
    """


class BranchLossConfig(Strict):
    """The branches: each matched one to many by its own matcher at every decoder layer."""

    classification: Classification = "quality"
    """Focal loss, the assignment-quality loss, or the IoU-aware loss."""
    quality: Literal["score", "iou"] = "score"
    """Soft target of a pair: its matching score (Deformable family) or its IoU (Relation family)."""
    weights: TermWeights = TermWeights()
    """Weights of the terms, divided by the number of branches."""
    merge_one_to_one: bool = False
    """Add the primary's pairs of the same layer to each branch's pairs."""
    duplicates: Literal["official", "clean"] = "official"
    """A query paired with several targets: all pairs count (official code), or only the best."""
    # Paper, "Training": auxiliary losses weigh half beside denoising queries.
    denoising_factor: float = Field(0.5, ge=0)
    """Further factor on the weights where the detector has denoising queries."""
    factor: float = Field(1.0, ge=0)
    """Further factor on the weights; below 1 the primary path has a larger share of the gradient."""
    rise: float = Field(0.0, ge=0, le=1)
    """Share of the run, from its start, over which the weights rise linearly from 0."""
    fall: float = Field(0.0, ge=0, le=1)
    """Share of the run, to its end, over which the weights fall linearly to 0."""
    shift: tuple[Share, Share] | None = None
    """The branches' part of all weight at the start and the end of the run, such as [0.8, 0.1]; the primary path has
    the rest. It changes linearly. At 0.5 both weigh what they weigh without ``shift``."""
    class_layer: ClassLayer = "shared"
    """Class layer of the branches. ``shared``: the primary's; ``detached``: the same, which branches do not train;
    ``own``: one of their own for all branches; ``each``: one for each. Strip drops those of their own."""
    class_from: Share = 0.0
    """Share of the run before which branches have box losses only."""
    second_best: tuple[Share, Share] | None = None
    """Factors, at the start and the end of the run, on the soft class targets of all pairs of an object but its best.

    With [1, 0.2] a branch ends nearly one to one. Not with the focal loss, which has no soft targets.
    """

    @model_validator(mode="after")
    def _rises_before_it_falls(self) -> BranchLossConfig:
        if self.rise + self.fall > 1:
            raise ValueError(f"rise ({self.rise}) and fall ({self.fall}) are shares of one run: at most 1 together")
        if self.second_best is not None and self.classification == "focal":
            raise ValueError("second_best needs soft targets, which the classification loss `focal` has not")
        return self

    def share(self, progress: float) -> float:
        """Return what the weights are multiplied by at a point of the run, beside ``factor``, in [0, 2].

        Args:
            progress: share of the run that is behind, in [0, 1].
        """
        rising = min(1.0, progress / self.rise) if self.rise else 1.0
        falling = min(1.0, (1 - progress) / self.fall) if self.fall else 1.0
        return rising * falling * 2 * _between(self.shift or (0.5, 0.5), progress)

    def primary_share(self, progress: float) -> float:
        """Return what the weights of the primary path are multiplied by at a point of the run, in [0, 2]."""
        return 1.0 if self.shift is None else 2 * (1 - _between(self.shift, progress))

    def weights_at(self, progress: float) -> TermWeights:
        """Return the weights of the terms at a point of the run."""
        return self.weights.model_copy(update={"classification": 0.0}) if progress < self.class_from else self.weights

    def second_best_at(self, progress: float) -> float:
        """Return the factor on the soft targets of all but the best pairs at a point of the run."""
        return 1.0 if self.second_best is None else _between(self.second_best, progress)


def _between(ends: tuple[float, float], progress: float) -> float:
    start, end = ends
    return start + (end - start) * progress


class EncoderLossConfig(Strict):
    """The proposals of the first stage, matched one to one."""

    classification: Classification = "focal"
    """Focal loss, or another with the IoU as quality."""
    classes: Literal["foreground", "own"] = "foreground"
    """Every object is of class 0, a single foreground class (Deformable family), or of its own (Relation family)."""
    tokens: Literal["all", "selected"] = "all"
    """Supervise all memory tokens, or only those that became queries."""
    weights: TermWeights = TermWeights()
    """Weights of the terms."""
    match_to: Literal["anchors", "predictions"] = "anchors"
    """Boxes that targets are matched to."""
    # An anchor has no class of its own, so boxes alone decide (authors' code).
    matcher: HungarianConfig = HungarianConfig(class_cost=0.0)
    """One-to-one matching."""


class HybridLossConfig(Strict):
    """Hybrid queries: matched one to one with targets that are repeated."""

    # H-DETR's K.
    repeats: int = Field(6, ge=1)
    """K, how often every target is repeated; the normaliser counts the repeated list."""
    classification: Classification | None = None
    """Null: that of the primary path."""
    # 1, 5, 2 are Relation-DETR's, for the proposals below and denoising too; so is eps=1e-6.
    weights: TermWeights = TermWeights(classification=1.0)
    """Weights of the terms."""
    matcher: HungarianConfig = HungarianConfig()
    """One-to-one matching."""
    encoder: EncoderLossConfig = EncoderLossConfig(
        classification="iou-aware",
        classes="own",
        tokens="selected",
        weights=TermWeights(classification=1.0),
        match_to="predictions",
        matcher=HungarianConfig(eps=1e-6),
    )
    """Proposals of the group, where it has heads of its own (Relation family)."""


class DenoisingLossConfig(Strict):
    """Denoising queries: each is trained on the target it was made of."""

    classification: Classification = "iou-aware"
    """Focal loss, or another with the IoU as quality."""
    weights: TermWeights = TermWeights(classification=1.0)
    """Weights of the terms."""


class DacLossConfig(Strict):
    """The second pass without self-attention: matched one to many (DAC-DETR)."""

    classification: Classification | None = None
    """Null: that of the primary path, with the matching score as quality."""
    weights: TermWeights = TermWeights()
    """Weights of the terms."""
    # As MS-DETR's branch.
    matcher: MatcherConfig = TopKConfig(k=6)
    """One-to-many assignment."""


class CriterionConfig(Strict):
    """All losses of a training step."""

    primary: PrimaryLossConfig = PrimaryLossConfig()
    """One-to-one supervision of the primary path."""
    branch: BranchLossConfig = BranchLossConfig()
    """One-to-many supervision of the branches."""
    encoder: EncoderLossConfig = EncoderLossConfig()
    """Supervision of the proposals."""
    hybrid: HybridLossConfig = HybridLossConfig()
    """Supervision of hybrid queries, where the detector has them."""
    denoising: DenoisingLossConfig = DenoisingLossConfig()
    """Supervision of denoising queries, where the detector has them."""
    dac: DacLossConfig = DacLossConfig()
    """Supervision of the pass without self-attention, where the detector has it."""
    constants: ClassificationConfig = ClassificationConfig()
    """Constants of the classification losses."""
    normaliser: Rule = "exact"
    """``exact``: max(total objects of all ranks, 1) / ranks, so that loss and gradient do not depend on the number of
    ranks; ``official``: max(total / ranks, 1)."""

    def normalise(self, total: float, world_size: int) -> Normaliser:
        """Return what losses are divided by, from the number of objects on all ranks."""
        return Normaliser(total, world_size, self.normaliser)
