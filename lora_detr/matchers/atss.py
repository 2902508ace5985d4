"""One-to-many matching by distance and by an overlap that every target sets for itself: ATSS."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from lora_detr.matchers.conflicts import wins_query
from lora_detr.matchers.one_to_many import OneToManyConfig, OverlapMatcher, per_group
from lora_detr.matchers.scores import holds_centre, reference_boxes
from lora_detr.ops.boxes import corners, iou
from lora_detr.ops.ranking import best_first
from lora_detr.structures import Assignment, PaddedTargets, Prediction


class ATSS(OverlapMatcher):
    """Match up to k queries to each target by the boxes that predictions refine; a query serves one target at most.

    Candidates of a target are the k queries whose references have the nearest centres. Of these, a query is positive
    if its reference overlaps the target by at least mean + standard deviation of the candidates' IoUs (n - 1 in the
    denominator; 0 for a single one), and has its centre inside the target. Wanted by several targets, it serves the
    one that its reference overlaps most. Nothing is refilled and nothing is forced.

    References are the same for all branches of a layer, so that all ATSS branches with one k have the same pairs.
    Published is the IoU of the *predicted* box, as ATSS itself has no soft target.

    An image without a target has no pair. With more targets than queries, or no centre inside, targets stay without a
    pair, as do a target without area and one that no reference overlaps. Ties: the lower query index among equal
    distances, the lower target index among equal IoUs; candidates of equal IoU are all positive. With k = 2 none is,
    unless both are equal.

    Zhang et al. (2020), "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
    Selection", algorithm 1; k = 9 as there and in mmdetection, ``ATSSAssigner``.

    Args:
        k: for each group of the stack, or one for all.

    Raises:
        ValueError: a k is smaller than 1.
    """

    # Published with anchors on several levels, k of each. Queries have no level. Distances are in shares of the image's
    # sides, since no matcher sees pixels.

    reads_references = True
    unique_queries = True

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack; logits are not read.

        Args:
            prediction: boxes [G, B, Q, 4], and their references, in whose place the boxes stand if there are none.
            targets: T padded targets an image.

        Returns:
            Assignment [G, B, T, min(max k, Q)], within a target by rising distance; all masked for T = 0.
        """
        reference = reference_boxes(prediction)
        queries = reference.shape[-2]
        limit = min(max(self.k), queries)
        number = per_group([min(k, limit) for k in self.k], reference).view(-1, 1, 1, 1)
        offset = targets.boxes[:, :, None, :2] - reference[..., None, :, :2]  # [G, B, T, Q, 2]
        # Squared, which orders alike.
        _, query = best_first(offset.square().sum(-1), limit, largest=False)
        overlap = iou(targets.corners, corners(reference).unsqueeze(-2)).gather(-1, query)  # [G, B, T, k]
        valid = torch.arange(limit, device=query.device) < number
        # Less that of the first, so that equal IoUs have exactly the mean that they must reach.
        relative = (overlap - overlap[..., :1]).masked_fill(~valid, 0.0)
        mean = relative.sum(-1, keepdim=True) / number
        squares = (relative - mean).masked_fill(~valid, 0.0).square().sum(-1, keepdim=True)
        reaches = relative >= mean + (squares / (number - 1).clamp(min=1)).sqrt()
        inside = holds_centre(targets.corners, reference).gather(-1, query)
        keep = reaches & valid & inside & (overlap > 0) & targets.mask[:, :, None]
        keep = wins_query(query, overlap, keep, queries)
        published = self.score(prediction, targets).gather(-1, query)
        return Assignment(query, torch.where(keep, published, 0.0), keep)


class ATSSConfig(OneToManyConfig):
    """Of the k queries whose references are nearest to a target, those that overlap it more than most (ATSS)."""

    kind: Literal["atss"] = "atss"
    k: int = Field(9, ge=1)
    """Candidates of a target: queries whose references have the nearest centres."""

    def build(self) -> ATSS:
        """Build the matcher of one branch."""
        return ATSS([self.k])
