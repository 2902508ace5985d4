"""One-to-one matching: the assignment of least total cost (Hungarian algorithm), as in DETR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lora_detr.config.base import Strict
from lora_detr.errors import NumericalError
from lora_detr.matchers.scores import aligned_score, matching_cost, matching_score
from lora_detr.ops.host import to_host
from lora_detr.structures import Assignment, PaddedTargets, Prediction, ScoredMatcher

Metric = Literal["cost", "aligned", "score"]

SCORE_CLASS_WEIGHT = 0.3
"""alpha of Eq. 7 where one-to-one pairs are compared by M: that of the branches."""

# Where no query overlaps a target, all scores are equal. Small beside a difference of scores, not beside rounding.
TIE_BREAK = 1e-5


class NonFiniteCostError(NumericalError):
    """A matching cost is NaN or infinite.

    Args:
        problem: index of the cost tensor among those solved together.
        group: index of the group in it.
        image: index of the image in the batch.
    """

    def __init__(self, problem: int, group: int, image: int) -> None:
        super().__init__(
            f"matching cost of problem {problem}, group {group}, image {image} of the batch is not finite", code="N06"
        )
        self.problem, self.group, self.image = problem, group, image


class Hungarian:
    """Match queries and targets one to one at least cost.

    Args:
        class_cost: weight of the focal class cost.
        l1_cost: weight of the L1 distance.
        giou_cost: weight of the negative GIoU.
        eps: added inside the logarithms of the class cost.
        metric: what pairs are compared by (``HungarianConfig.metric``).
        metric_from: share of the run before which it is the cost.
    """

    def __init__(
        self,
        class_cost: float,
        l1_cost: float,
        giou_cost: float,
        eps: float,
        metric: Metric = "cost",
        metric_from: float = 0.0,
    ) -> None:
        self.class_cost, self.l1_cost, self.giou_cost, self.eps = class_cost, l1_cost, giou_cost, eps
        self.metric, self.metric_from = metric, metric_from

    def reads_classes(self, progress: float) -> bool:
        """Return whether labels and logits count at a point of the run."""
        return bool(self.class_cost) or self.metric_at(progress) != "cost"

    def metric_at(self, progress: float) -> Metric:
        """Return what pairs are compared by at a point of the run."""
        return "cost" if progress < self.metric_from else self.metric

    def cost(self, prediction: Prediction, targets: PaddedTargets, progress: float = 1.0) -> Tensor:
        """Return the cost of every pair, [G, B, T, Q], at a point of the run in [0, 1]."""
        cost = matching_cost(prediction, targets, self.class_cost, self.l1_cost, self.giou_cost, self.eps)
        metric = self.metric_at(progress)
        if metric == "cost":
            return cost
        if metric == "aligned":
            score = aligned_score(prediction, targets)
        else:
            score = matching_score(prediction, targets, cost.new_tensor([SCORE_CLASS_WEIGHT]))
        return TIE_BREAK * cost - score

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match a stack by itself. For several stacks of one step, ``solve_together`` needs only one host copy."""
        return solve_together([self.cost(prediction, targets)], targets)[0]


@runtime_checkable
class LeastCostMatcher(ScoredMatcher, Protocol):
    """A one-to-many matcher that repeats targets and matches them at least cost, together with all others of a step."""

    @property
    def repeats(self) -> int:
        """Copies of each target."""

    @property
    def share(self) -> float | None:
        """Part of the queries that they may take (``Problem``)."""

    def cost(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the cost of every pair, [G, B, T, Q]."""

    def finish(self, solved: Assignment, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Return the pairs of least cost with the scores that the matcher publishes."""


@dataclass(frozen=True)
class Problem:
    """Costs to be solved with those of others.

    Attributes:
        cost: [G, B, T, Q].
        repeats: how often each target is matched (the whole list again and again, H-DETR).
        share: part of the queries that all copies of an image may take at most; an image with more has fewer copies,
            but at least one. None: no such limit, and what finds no query stays unmatched.
        start: index of the first group in the stack that the costs are of; for messages.
    """

    cost: Tensor
    repeats: int = 1
    share: float | None = None
    start: int = 0

    def copies(self, count: int) -> int:
        """Return how often each of ``count`` >= 1 targets of an image is matched."""
        if self.share is None:
            return self.repeats
        return max(1, min(self.repeats, int(self.share * self.cost.shape[-1] / count)))


def solve_together(
    costs: Sequence[Tensor], targets: PaddedTargets, repeats: Sequence[int] | None = None
) -> list[Assignment]:
    """Solve all matching problems of a step after a single copy to the host.

    Targets beyond the number of queries stay unmatched. Equal costs are resolved as scipy does.

    Args:
        costs: tensors [G, B, T, Q], each with its own G and Q; Q may be 0. There may be none.
        targets: of the batch; only ``counts`` and ``mask`` are read.
        repeats: how often each problem has every target (the whole list again and again, H-DETR); once by default.

    Returns:
        For each cost tensor an assignment [G, B, T, repeats], its score the negative cost of the pair. No query is
        used twice.

    Raises:
        NonFiniteCostError: a cost of a real target is NaN or infinite.
    """
    given = zip(costs, repeats or [1] * len(costs), strict=True)
    return solve_problems([Problem(cost, copies) for cost, copies in given], targets)


@torch.no_grad()
def solve_problems(problems: Sequence[Problem], targets: PaddedTargets) -> list[Assignment]:
    """Solve all matching problems of a step as ``solve_together`` does, where they differ in more than their costs."""
    if not problems:
        return []
    # One copy, then plain arrays: an operation on tensors for each problem would cost more than the problem.
    host = to_host(torch.cat([problem.cost.flatten() for problem in problems])).numpy()
    assignments = []
    start = 0
    for index, problem in enumerate(problems):
        cost = problem.cost
        table = host[start : start + cost.numel()].reshape(cost.shape)
        start += cost.numel()
        groups, batch, width, _ = cost.shape
        query = np.zeros((groups, batch, width, problem.repeats), dtype=np.int64)
        matched = np.zeros((groups, batch, width, problem.repeats), dtype=np.bool_)
        for group in range(groups):
            for image, count in enumerate(targets.counts):
                if count == 0:
                    continue
                rows_of_copies = np.tile(table[group, image, :count], (problem.copies(count), 1))
                try:
                    rows, columns = linear_sum_assignment(rows_of_copies)
                except ValueError as error:  # scipy refuses NaN and -inf; +inf only when nothing else is left
                    raise NonFiniteCostError(index, group, image) from error
                query[group, image, rows % count, rows // count] = columns
                matched[group, image, rows % count, rows // count] = True
                if not np.isfinite(rows_of_copies[rows, columns]).all():
                    raise NonFiniteCostError(index, group, image)
        chosen = torch.from_numpy(query).to(cost.device, non_blocking=True)
        mask = torch.from_numpy(matched).to(cost.device, non_blocking=True)
        score = -cost.gather(-1, chosen) if cost.shape[-1] else cost.new_zeros(chosen.shape)
        assignments.append(Assignment(chosen, score, mask))
    return assignments


class HungarianConfig(Strict):
    """One-to-one matching at least cost."""

    kind: Literal["hungarian"] = "hungarian"
    # Deformable-DETR's weights and eps; presets of Relation-DETR set its eps, 1e-6.
    class_cost: float = Field(2.0, ge=0)
    """Weight of the focal class cost."""
    l1_cost: float = Field(5.0, ge=0)
    """Weight of the L1 distance of (cx, cy, w, h)."""
    giou_cost: float = Field(2.0, ge=0)
    """Weight of the negative GIoU."""
    eps: float = Field(1e-8, gt=0)
    """Added inside the logarithms of the class cost."""
    metric: Metric = "cost"
    """What pairs are compared by. ``cost``: DETR's sum; ``aligned``: class probability times IoU^4, as one-to-many
    matchers of YOLO rank pairs; ``score``: M of Eq. 7 with alpha 0.3, as the branches do. Of equal ones, ``cost``."""
    metric_from: float = Field(0.0, ge=0, le=1)
    """Share of the run before which ``cost`` is used."""

    def build(self) -> Hungarian:
        """Build the matcher."""
        return Hungarian(self.class_cost, self.l1_cost, self.giou_cost, self.eps, self.metric, self.metric_from)
