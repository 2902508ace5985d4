"""One-to-many matching at least cost: every target is repeated, as in H-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.matchers.hungarian import HungarianConfig, Problem, solve_problems
from lora_detr.matchers.one_to_many import OneToManyConfig, checked_k
from lora_detr.matchers.scores import overlap_score
from lora_detr.structures import Assignment, PaddedTargets, Prediction


class HungarianRepeat:
    """Match every target k times at least total cost, all copies at once; a query serves one target at most.

    The cost is that of one-to-one matching, 2 focal + 5 L1 + 2 (-GIoU), of the *predictions*. In an image of T targets
    and Q queries each target has min(k, Q / T, rounded down) copies, but at least one. Published is the IoU of the
    predicted box, as H-DETR has no soft target.

    An image without a target has no pair. With more targets than queries, those that cost most in total stay without.
    A target that nothing overlaps, such as one without area, receives its queries all the same, with score 0. Ties are
    resolved as scipy does.

    Jia et al. (2023), "DETRs with Hybrid Matching", section 3.2, hybrid branch scheme; K = 6 as in its tables 9 and 10.

    Args:
        k: copies of each target.
        share: part of the queries that all copies of an image may take.

    Raises:
        ValueError: k is smaller than 1.
    """

    # H-DETR gives the copies a query group of its own. Here they compete for the queries of the primary path, so with
    # as many copies as in a group of 1,500, which targets miss would be left to chance.

    unique_queries = True

    def __init__(self, k: int, share: float = 1.0) -> None:
        (self.repeats,), self.share = checked_k([k]), share
        self.hungarian = HungarianConfig().build()

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack: everything."""
        return self.repeats, self.share

    @classmethod
    def stacked(cls, members: Sequence[Self], groups_each: int) -> Self:
        """Return one matcher for a stack of members, which are all alike."""
        return members[0]

    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the IoU of every pair, float32 [G, B, T, Q]; pairs are not found by it."""
        return overlap_score(prediction, targets)

    @torch.no_grad()
    def cost(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the cost of every pair, float32 [G, B, T, Q]."""
        return self.hungarian.cost(prediction, targets)

    @torch.no_grad()
    def finish(self, solved: Assignment, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Return the pairs [G, B, T, k] with their IoUs."""
        overlap = self.score(prediction, targets).gather(-1, solved.query)
        return Assignment(solved.query, torch.where(solved.mask, overlap, 0.0), solved.mask)

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack by itself; the criterion solves all problems of a step after one copy to the host.

        Args:
            prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4].
            targets: T padded targets an image.

        Returns:
            Assignment [G, B, T, k], in no order; all masked for T = 0.

        Raises:
            NonFiniteCostError: a cost of a real target is NaN or infinite.
        """
        (solved,) = solve_problems([Problem(self.cost(prediction, targets), self.repeats, self.share)], targets)
        return self.finish(solved, prediction, targets)


class HungarianRepeatConfig(OneToManyConfig):
    """One-to-one matching with every target repeated k times (H-DETR)."""

    kind: Literal["hungarian-repeat"] = "hungarian-repeat"
    k: int = Field(6, ge=1)
    """Copies of each target; fewer in an image whose copies would be more than the queries."""

    def build(self) -> HungarianRepeat:
        """Build the matcher of one branch."""
        return HungarianRepeat(self.k)
