"""One-to-many matching by class probability and overlap, multiplied: the task-aligned assignment of TOOD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.matchers.conflicts import wins_query
from lora_detr.matchers.one_to_many import OneToManyConfig, OverlapMatcher, per_group
from lora_detr.matchers.scores import holds_centre, reference_boxes, target_logits
from lora_detr.ops.ranking import best_first
from lora_detr.structures import Assignment, PaddedTargets, Prediction

SMALLEST = torch.finfo(torch.float32).tiny


class TaskAligned(OverlapMatcher):
    """Match up to k queries to each target by m = s^alpha u^beta; a query serves one target at most.

    s is the probability of the target's class, u the IoU, both of the *predictions*. A target wants the k queries of
    highest m, as far as that is above 0, and, with ``inside``, those of them whose *reference* has its centre inside.
    Wanted by several targets, a query serves the one of highest u, and not of highest m; nothing is refilled.
    Published is m, scaled so that the highest of a target's pairs becomes the highest u among them.

    An image without a target has no pair, nor has a target that nothing overlaps, one without area, or one whose every
    m underflows. With more targets than queries, some stay without a pair. Ties: the lower query index, the lower
    target index.

    Feng et al. (2021), "TOOD", section 3.2, Eqs. 3 and 4; k = 13, alpha = 1, beta = 6 as there and in mmdetection,
    ``TaskAlignedAssigner``.

    Args:
        k: for each group of the stack, or one for all.
        alpha: exponent of the class probability.
        beta: exponent of the IoU.
        inside: leave out queries whose reference has its centre outside the target.

    Raises:
        ValueError: a k is smaller than 1.
    """

    # Published with the test of the centre, for points of a grid. A query is none, and its reference moves from layer
    # to layer.

    unique_queries = True

    def __init__(self, k: Sequence[int], alpha: float = 1.0, beta: float = 6.0, inside: bool = False) -> None:
        super().__init__(k)
        self.alpha, self.beta, self.inside = alpha, beta, inside

    @property
    def reads_references(self) -> bool:
        """Whether references count."""
        return self.inside

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack."""
        return self.alpha, self.beta, self.inside

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack.

        Args:
            prediction: logits [G, B, Q, K]; boxes [G, B, Q, 4], and with ``inside`` their references, in whose place
                the boxes stand if there are none.
            targets: T padded targets an image.

        Returns:
            Assignment [G, B, T, min(max k, Q)], within a target by falling m; all masked for T = 0.
        """
        probability = target_logits(prediction.logits.float(), targets.labels).sigmoid()
        allowed = targets.mask[:, :, None]
        if self.inside:
            allowed = allowed & holds_centre(targets.corners, reference_boxes(prediction))
        return self.assign(probability, self.score(prediction, targets), allowed)

    @torch.no_grad()
    def assign(self, probability: Tensor, overlap: Tensor, allowed: Tensor) -> Assignment:
        """Match by given probabilities and IoUs [G, B, T, Q]; only ``allowed`` pairs, [..., B, T, Q or 1], remain."""
        queries = overlap.shape[-1]
        limit = min(max(self.k), queries)
        aligned = (probability**self.alpha * overlap**self.beta).nan_to_num(nan=0.0)
        value, query = best_first(aligned, limit)  # [G, B, T, k]
        slot = torch.arange(limit, device=query.device)
        keep = (value > 0) & (slot < per_group(self.k, overlap).view(-1, 1, 1, 1))
        keep = keep & allowed.expand_as(overlap).gather(-1, query)
        found = overlap.gather(-1, query)
        keep = wins_query(query, found, keep, queries)
        value, found = value.masked_fill(~keep, 0.0), found.masked_fill(~keep, 0.0)
        share = value / value.amax(-1, keepdim=True).clamp(min=SMALLEST)
        return Assignment(query, share * found.amax(-1, keepdim=True), keep)


class TaskAlignedConfig(OneToManyConfig):
    """The k queries of highest s^alpha u^beta, of class probability s and IoU u (TOOD)."""

    kind: Literal["task-aligned"] = "task-aligned"
    k: int = Field(13, ge=1)
    """Most queries a target receives."""
    alpha: float = Field(1.0, ge=0)
    """Exponent of the class probability."""
    beta: float = Field(6.0, ge=0)
    """Exponent of the IoU."""
    inside: bool = False
    """Leave out queries whose reference has its centre outside the target (TOOD, for points of a grid)."""

    def describe(self) -> str:
        """Return kind, k and exponents."""
        inside = " inside" if self.inside else ""
        return f"{super().describe()} alpha={self.alpha:g} beta={self.beta:g}{inside}"

    def build(self) -> TaskAligned:
        """Build the matcher of one branch."""
        return TaskAligned([self.k], self.alpha, self.beta, self.inside)
