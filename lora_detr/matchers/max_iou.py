"""One-to-many matching by overlap alone: max-IoU as in Faster R-CNN, and as DETA matches its decoder queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lora_detr.matchers.conflicts import best_pair_of_query, served
from lora_detr.matchers.one_to_many import OneToManyConfig, OverlapMatcher, per_group
from lora_detr.structures import Assignment, PaddedTargets, Prediction


class MaxIoU(OverlapMatcher):
    """Match up to k queries to each target, over a whole stack at once; a query serves one target at most.

    A query is positive for the target that its *predicted* box overlaps most, if their IoU reaches ``pos``; a target
    keeps the k positives of highest IoU. A target left without a positive then receives the query of highest IoU, if
    that is above 0, reaches ``min_pos``, and serves no target yet; of several such targets the query serves the one it
    overlaps most. Of the other queries, those whose highest IoU is at least ``neg`` and below ``pos`` are ignored; the
    rest is background. Published is the IoU.

    An image without a target has no pair and nothing to ignore. With more targets than queries, and where nothing
    overlaps a target, such as one without area, it stays without a pair. Ties: the lower query index, the lower target
    index. No number is drawn at random.

    Ren et al. (2015), "Faster R-CNN", section 3.1.2; Ouyang-Zhang et al. (2022), "NMS Strikes Back" (DETA), for the k
    best; defaults as in DETA's second stage, where ``neg`` is ``pos``. Its first has pos 0.7, neg 0.3, min_pos 0.

    Args:
        k: for each group of the stack, or one for all.
        pos: IoU in (0, 1] that a query must reach (>=).
        neg: IoU from which on a query that is not paired is ignored; None for ``pos``, so that none is.
        min_pos: IoU that the query of a target without a positive must reach; None leaves such a target without.

    Raises:
        ValueError: a k is smaller than 1.
    """

    # DETA matches its proposals, once for all layers, and samples positives before it takes the best k. A matcher here
    # sees the boxes that a layer predicts, and taking the best k is enough.

    unique_queries = True

    def __init__(
        self, k: Sequence[int], pos: float = 0.6, neg: float | None = None, min_pos: float | None = 0.0
    ) -> None:
        super().__init__(k)
        self.pos, self.neg, self.min_pos = pos, neg, min_pos

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack."""
        return self.pos, self.neg, self.min_pos

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack: boxes [G, B, Q, 4] against padded targets; logits are not read."""
        return self.match(self.score(prediction, targets), targets.mask)

    @torch.no_grad()
    def match(self, score: Tensor, mask: Tensor, priority: Tensor | None = None) -> Assignment:
        """Match by given IoUs.

        Args:
            score: [G, B, T, Q].
            mask: bool [B, T], true at real targets.
            priority: not read.

        Returns:
            Assignment [G, B, T, min(max k, Q)], within a target by falling IoU; all masked for T = 0.
        """
        queries = score.shape[-1]
        score = score.masked_fill(~mask.view(1, *mask.shape, 1), -torch.inf)
        overlap, preferred = score.max(dim=2)  # [G, B, Q], the first of equal targets
        target = torch.arange(score.shape[2], device=score.device)[:, None]
        positive = (preferred[:, :, None] == target) & (overlap >= self.pos)[:, :, None]  # [G, B, T, Q]
        # Stable, since topk orders equal values differently from device to device.
        ranked = score.masked_fill(~positive, -torch.inf).sort(dim=-1, descending=True, stable=True)
        limit = min(max(self.k), queries)
        value, query = ranked.values[..., :limit], ranked.indices[..., :limit]
        slot = torch.arange(limit, device=score.device)
        keep = (value > 0) & (slot < per_group(self.k, score).view(-1, 1, 1, 1))  # [G, B, T, k]

        if self.min_pos is not None:
            highest, best = (part.unsqueeze(-1) for part in score.max(dim=-1))  # [G, B, T, 1]
            free = ~served(query, keep, queries).gather(-1, best.flatten(2)).view(best.shape)
            wanted = (highest > 0) & (highest >= self.min_pos) if self.min_pos else highest > 0
            forced = Assignment(best, highest, ~keep.any(-1, keepdim=True) & wanted & free)
            first = best_pair_of_query(forced, queries) & (slot == 0)
            query, value, keep = torch.where(first, best, query), torch.where(first, highest, value), keep | first
        ignored = None
        if self.neg is not None:
            ignored = (overlap >= self.neg) & (overlap < self.pos) & ~served(query, keep, queries)
        return Assignment(query, torch.where(keep, value, 0.0), keep, ignored)


class MaxIoUConfig(OneToManyConfig):
    """Up to k queries a target whose predicted boxes overlap it most."""

    kind: Literal["max-iou"] = "max-iou"
    # Both of DETA's second stage.
    k: int = Field(4, ge=1)
    """Most queries a target receives."""
    pos: float = Field(0.6, gt=0, le=1)
    """IoU that a query must reach."""
    neg: float | None = Field(None, gt=0, le=1)
    """IoU from which on a query without a target has no class loss; null: that of ``pos``, so that every one has."""
    min_pos: float | None = Field(0.0, ge=0, le=1)
    """IoU, beside an overlap, that the best query of a target without any must reach; null leaves the target without
    (Faster R-CNN's second stage)."""

    @model_validator(mode="after")
    def _leaves_a_band(self) -> MaxIoUConfig:
        if self.neg is not None and self.neg > self.pos:
            raise ValueError(f"neg ({self.neg:g}) must be at most pos ({self.pos:g}); between them queries are ignored")
        return self

    def describe(self) -> str:
        """Return kind, k and the thresholds that are set."""
        neg = "" if self.neg is None else f" neg={self.neg:g}"
        min_pos = "" if self.min_pos == 0 else f" min_pos={'none' if self.min_pos is None else f'{self.min_pos:g}'}"
        return f"{super().describe()} pos={self.pos:g}{neg}{min_pos}"

    def build(self) -> MaxIoU:
        """Build the matcher of one branch."""
        return MaxIoU([self.k], self.pos, self.neg, self.min_pos)
