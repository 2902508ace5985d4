"""One-to-many matching in which a target's overlaps decide how many queries it receives: SimOTA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.matchers.conflicts import wins_query
from lora_detr.matchers.one_to_many import OneToManyConfig, OverlapMatcher, per_group
from lora_detr.matchers.scores import holds_centre, reference_boxes, target_logits
from lora_detr.ops.ranking import best_first
from lora_detr.structures import Assignment, PaddedTargets, Prediction

# All three as published. The last is above any sum of the other two.
IOU_WEIGHT = 3.0
EPS = 1e-8
OUTSIDE = 1e5
# Logarithms end there in ``binary_cross_entropy``, by which the class cost is defined.
SMALLEST_LOG = -100.0


class SimOTA(OverlapMatcher):
    """Match a number of queries to each target that its overlaps decide; a query serves one target at most.

    A target receives k_t = max(1, the sum of its q largest IoUs, rounded down) queries, those of least cost. The cost
    is the binary cross-entropy of the square roots of all class probabilities + 3 (-log(IoU + 1e-8)) + 1e5 where the
    centre of the query's *reference* is outside the target. Wanted by several targets, a query serves the one it
    costs least; nothing is refilled. Class and IoU are those of the *predictions*. Published is the IoU, as YOLOX's
    class target is.

    An image without a target has no pair. With more targets than queries, or fewer queries than its neighbours want,
    a target can be left without a pair. One that nothing overlaps, such as one without area, receives the one query
    of least class cost, with score 0. Ties: the lower query index, the lower target index.

    Ge et al. (2021), "YOLOX", section 2.1, a simplification of OTA (Ge et al., 2021); q = 10 and the weights as in
    YOLOX and mmdetection, ``SimOTAAssigner``.

    Args:
        k: q, for each group of the stack, or one for all; no target receives more queries than that.

    Raises:
        ValueError: a k is smaller than 1.
    """

    # Published for points of a grid, and only for those near a target's centre, in strides. Queries have no stride, and
    # early in training few are near; so geometry is a penalty and never a filter.

    reads_references = True
    unique_queries = True

    @torch.no_grad()
    def cost(self, prediction: Prediction, targets: PaddedTargets, overlap: Tensor) -> Tensor:
        """Return the cost of every pair, float32 [G, B, T, Q], from the IoU of every pair and the prediction."""
        root = prediction.logits.float().sigmoid().sqrt()
        background = _log(1 - root).sum(-1)[:, :, None]  # [G, B, 1, Q]
        own = target_logits(root, targets.labels)  # [G, B, T, Q]
        classes = _log(1 - own) - _log(own) - background
        outside = ~holds_centre(targets.corners, reference_boxes(prediction))
        return classes - IOU_WEIGHT * torch.log(overlap + EPS) + OUTSIDE * outside

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack.

        Args:
            prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4], and their references, in whose place the boxes stand if
                there are none.
            targets: T padded targets an image.

        Returns:
            Assignment [G, B, T, min(max k, Q)], within a target by rising cost; all masked for T = 0.
        """
        overlap = self.score(prediction, targets)
        return self.assign(self.cost(prediction, targets, overlap), overlap, targets.mask)

    @torch.no_grad()
    def assign(self, cost: Tensor, overlap: Tensor, mask: Tensor) -> Assignment:
        """Match by given costs and IoUs [G, B, T, Q]; ``mask`` [B, T] is true at real targets."""
        queries = cost.shape[-1]
        limit = min(max(self.k), queries)
        slot = torch.arange(limit, device=cost.device)
        largest = overlap.topk(limit, dim=-1).values
        largest = largest.masked_fill(slot >= per_group(self.k, cost).view(-1, 1, 1, 1), 0.0)
        number = largest.sum(-1, keepdim=True).floor().clamp(min=1)
        lowest, query = best_first(cost, limit, largest=False)
        keep = (slot < number) & mask[:, :, None]
        keep = wins_query(query, -lowest, keep, queries)
        return Assignment(query, torch.where(keep, overlap.gather(-1, query), 0.0), keep)


def _log(value: Tensor) -> Tensor:
    return value.log().clamp(min=SMALLEST_LOG)


class SimOTAConfig(OneToManyConfig):
    """As many queries a target as its overlaps add up to, those of least cost (SimOTA)."""

    kind: Literal["simota"] = "simota"
    short: ClassVar[Mapping[str, str]] = {"q": "k"}
    k: int = Field(10, ge=1)
    """q: how many of a target's largest IoUs are added up to the number of its queries, which is no larger."""

    def build(self) -> SimOTA:
        """Build the matcher of one branch."""
        return SimOTA([self.k])
