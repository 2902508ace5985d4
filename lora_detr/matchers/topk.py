"""One-to-many matching: up to k queries a target whose score reaches a threshold (LoRA-DETR Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.matchers.one_to_many import OneToManyConfig, checked_k, per_group, spread
from lora_detr.matchers.scores import matching_score
from lora_detr.ops.ranking import best_first
from lora_detr.structures import Assignment, PaddedTargets, Prediction


class TopK:
    """Match up to k queries to each target, over a whole stack at once.

    A query prefers the target of its highest score. It is a candidate when that score reaches the threshold, or when
    it is the best query of some target (``force_best``). At random, candidates are cut down to a fraction of the
    queries. A target that n candidates prefer receives min(n, k) queries, drawn from its whole score row
    (``official``; a query may then serve two targets, or one it does not prefer) or only from queries that prefer it
    and reach the threshold (``strict``; forcing plays no part there).

    Class and IoU are those of the *predictions*; M is published. An image without a target has no pair. With more
    targets than queries, those that no query prefers stay without. A target that nothing overlaps, such as one without
    area, is matched by its class alone, as far as that goes. Ties: the lower query index, the lower target index.

    Args:
        k: for each group of the stack, or one for all.
        threshold: likewise; tau in [0, 1].
        class_weight: likewise; alpha of Eq. 7 in [0, 1].
        strict_threshold: a score must exceed the threshold; else equality passes.
        force_best: the best query of each target is a candidate whatever its score.
        positive_fraction: candidates kept, as a share of the queries; None keeps all.
        candidates: where a target's queries are drawn from.

    Raises:
        ValueError: a k is smaller than 1.
    """

    def __init__(
        self,
        k: Sequence[int],
        threshold: Sequence[float] = (0.4,),
        class_weight: Sequence[float] = (0.3,),
        *,
        strict_threshold: bool = False,
        force_best: bool = True,
        positive_fraction: float | None = 0.25,
        candidates: Literal["official", "strict"] = "official",
    ) -> None:
        self.k, self.threshold, self.class_weight = checked_k(k), tuple(threshold), tuple(class_weight)
        self.strict_threshold, self.force_best = strict_threshold, force_best
        self.positive_fraction, self.candidates = positive_fraction, candidates

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack."""
        return self.strict_threshold, self.force_best, self.positive_fraction, self.candidates

    @classmethod
    def stacked(cls, members: Sequence[TopK], groups_each: int) -> TopK:
        """Return one matcher for a stack in which each member has ``groups_each`` consecutive groups.

        Args:
            members: matchers with equal ``options``, of one group or ``groups_each``.
            groups_each: groups (decoder layers) of each member.
        """
        first = members[0]
        return cls(
            [k for member in members for k in spread(member.k, groups_each)],
            [threshold for member in members for threshold in spread(member.threshold, groups_each)],
            [weight for member in members for weight in spread(member.class_weight, groups_each)],
            strict_threshold=first.strict_threshold,
            force_best=first.force_best,
            positive_fraction=first.positive_fraction,
            candidates=first.candidates,
        )

    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the matching score M of every pair, [G, B, T, Q]."""
        return matching_score(prediction, targets, per_group(self.class_weight, prediction.boxes))

    def __call__(self, prediction: Prediction, targets: PaddedTargets, priority: Tensor | None = None) -> Assignment:
        """Match a stack: logits [G, B, Q, K] and boxes [G, B, Q, 4] against padded targets."""
        return self.match(self.score(prediction, targets), targets.mask, priority)

    @torch.no_grad()
    def match(self, score: Tensor, mask: Tensor, priority: Tensor | None = None) -> Assignment:
        """Match by given scores.

        Args:
            score: [G, B, T, Q].
            mask: bool [B, T], true at real targets.
            priority: float [G, B, Q] in place of a random draw: the candidates of highest priority are kept when
                there are too many.

        Returns:
            Assignment [G, B, T, min(max k, Q)], by falling score, then by query; all masked for T = 0.
        """
        queries = score.shape[-1]
        score = score.masked_fill(~mask.view(1, *mask.shape, 1), -torch.inf)
        preferred_score, preferred = score.max(dim=2)  # [G, B, Q]
        threshold = per_group(self.threshold, score).view(-1, 1, 1)
        reaches = preferred_score > threshold if self.strict_threshold else preferred_score >= threshold
        candidate = reaches
        # Not in the paper. In the authors' code targets have positives even while no score reaches the threshold.
        if self.force_best and self.candidates == "official":
            best = score.argmax(-1)  # [G, B, T]
            forced = torch.zeros_like(preferred_score).scatter_add(-1, best, mask.to(score.dtype).expand_as(best))
            candidate = reaches | (forced > 0)
        candidate = self._cap(candidate, priority)

        limit = min(max(self.k), queries)
        if self.candidates == "strict":
            target = torch.arange(score.shape[2], device=score.device)[:, None]
            score = score.masked_fill(~(candidate[:, :, None] & (preferred[:, :, None] == target)), -torch.inf)
            value, query = best_first(score, limit)
            number = torch.isfinite(value).sum(-1)
        else:
            value, query = best_first(score, limit)
            number = torch.zeros_like(score[..., 0]).scatter_add(-1, preferred, candidate.to(score.dtype))
        number = torch.minimum(number, per_group(self.k, score).view(-1, 1, 1))
        keep = torch.arange(limit, device=score.device) < number[..., None]  # [G, B, T, k]
        return Assignment(query, torch.where(keep, value, 0.0), keep)

    def _cap(self, candidate: Tensor, priority: Tensor | None) -> Tensor:
        """Keep at most the given share of the queries [G, B, Q] as candidates, those of highest priority."""
        if self.positive_fraction is None:
            return candidate
        # The paper has no cap; the authors' code keeps the first int(0.25 Q) of a random permutation of each image's
        # candidates. The highest random priorities are as likely, and need no loop over images and no host copy.
        limit = int(self.positive_fraction * candidate.shape[-1])
        if priority is None:
            priority = torch.rand(candidate.shape, device=candidate.device)
        order = priority.masked_fill(~candidate, -torch.inf)
        chosen = order.sort(dim=-1, descending=True, stable=True).indices[..., :limit]  # few enough to sort them all
        return torch.zeros_like(candidate).scatter(-1, chosen, True) & candidate


class TopKConfig(OneToManyConfig):
    """Up to k queries a target whose score reaches a threshold."""

    kind: Literal["topk"] = "topk"
    short: ClassVar[Mapping[str, str]] = {"tau": "threshold", "alpha": "class_weight"}
    # Threshold and class weight of the authors' code for every branch.
    threshold: float = Field(0.4, ge=0, le=1)
    """tau: score that a query must reach."""
    class_weight: float = Field(0.3, ge=0, le=1)
    """alpha of Eq. 7: weight of the class probability; IoU has the rest."""
    strict_threshold: bool = False
    """A score must exceed the threshold (the paper's wording); else equality passes (official code)."""
    force_best: bool = True
    """The best query of each target is a candidate whatever its score (official code)."""
    positive_fraction: float | None = Field(0.25, gt=0, le=1)
    """Candidates kept at random, as a share of the queries (official code); null keeps all."""
    candidates: Literal["official", "strict"] = "official"
    """``official``: a target's queries are drawn from its whole score row; ``strict``: only queries that prefer it, at
    or above the threshold."""

    def describe(self) -> str:
        """Return kind, k, tau and alpha."""
        return f"{super().describe()} tau={self.threshold:g} alpha={self.class_weight:g}"

    def build(self) -> TopK:
        """Build the matcher of one branch."""
        return TopK(
            [self.k],
            [self.threshold],
            [self.class_weight],
            strict_threshold=self.strict_threshold,
            force_best=self.force_best,
            positive_fraction=self.positive_fraction,
            candidates=self.candidates,
        )
