"""One-to-many matching at least cost with soft targets that fall from query to query: as in Align-DETR."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.matchers.hungarian_repeat import HungarianRepeat
from lora_detr.matchers.one_to_many import OneToManyConfig
from lora_detr.matchers.scores import overlap_score, target_logits
from lora_detr.structures import Assignment, PaddedTargets, Prediction

SMALLEST_QUALITY = 0.01
"""Below that no quality is taken."""

SHARE = 0.5
"""Part of the queries that may be paired, so that background remains."""


class ManyToOne(HungarianRepeat):
    """Match every target k times at least cost, and weigh the queries of a target by rank.

    Pairs are those of ``HungarianRepeat``, with copies for at most half the queries. The quality of a pair is
    s^alpha u^(1 - alpha), at least 0.01, of class probability s and IoU u of the *predictions*. Published is the
    quality times exp(-rank / tau): rank 0 is a target's pair of highest quality.

    An image without a target has no pair. With more targets than half the queries each has one query, as far as there
    are any. A target that nothing overlaps, such as one without area, receives its queries all the same, with the least
    quality. Ties: ranks by lower query index; pairs as scipy resolves them.

    Cai et al. (2023), "Align-DETR", sections 3.2 and 3.3; k = 2, alpha = 0.25, tau = 1.5 as in the configurations of
    FelixCaae/AlignDETR, where the last decoder layer is matched once.

    Args:
        k: copies of each target.
        alpha: exponent of the class probability, in [0, 1]; IoU has the rest.
        tau: how slowly the weight falls with rank, above 0.

    Raises:
        ValueError: k is smaller than 1.
    """

    # In the authors' code the limit of one image carries over to the next of its batch. Here every image has its own.
    # All layers of a branch repeat: no layer of it is what the detector answers with.

    def __init__(self, k: int, alpha: float = 0.25, tau: float = 1.5) -> None:
        super().__init__(k, SHARE)
        self.alpha, self.tau = alpha, tau

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack: everything."""
        return self.repeats, self.alpha, self.tau

    @torch.no_grad()
    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the quality of every pair, float32 [G, B, T, Q], as if it were the best of its target."""
        probability = target_logits(prediction.logits.float(), targets.labels).sigmoid()
        quality = probability**self.alpha * overlap_score(prediction, targets) ** (1 - self.alpha)
        return quality.clamp(min=SMALLEST_QUALITY)

    def finish(self, solved: Assignment, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Return the pairs [G, B, T, k], within a target by falling quality."""
        return self.ranked(solved, self.score(prediction, targets))

    @torch.no_grad()
    def ranked(self, solved: Assignment, quality: Tensor) -> Assignment:
        """Order pairs by quality [G, B, T, Q], and weigh them by rank."""
        queries = quality.shape[-1]
        query, order = solved.query.masked_fill(~solved.mask, queries).sort(-1)  # of equals the lower query first
        mask, query = solved.mask.gather(-1, order), query.clamp(max=queries - 1)
        found = quality.gather(-1, query).masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True)
        query, mask = query.gather(-1, found.indices), mask.gather(-1, found.indices)
        weight = torch.exp(torch.arange(query.shape[-1], device=query.device) / -self.tau)
        return Assignment(query, torch.where(mask, found.values * weight, 0.0), mask)


class ManyToOneConfig(OneToManyConfig):
    """One-to-one matching with every target repeated k times, and soft targets that fall with rank (Align-DETR)."""

    kind: Literal["many-to-one"] = "many-to-one"
    k: int = Field(2, ge=1)
    """Copies of each target; fewer in an image whose copies would be more than half the queries."""
    alpha: float = Field(0.25, ge=0, le=1)
    """Exponent of the class probability in the soft target; IoU has the rest."""
    tau: float = Field(1.5, gt=0)
    """The soft target of a target's query of rank r, 0 first, is multiplied by exp(-r / tau)."""

    def describe(self) -> str:
        """Return kind, k, alpha and tau."""
        return f"{super().describe()} alpha={self.alpha:g} tau={self.tau:g}"

    def build(self) -> ManyToOne:
        """Build the matcher of one branch."""
        return ManyToOne(self.k, self.alpha, self.tau)
