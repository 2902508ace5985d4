"""One-to-many matching of several branches at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_detr.losses.config import BranchLossConfig
from lora_detr.matchers.conflicts import merge_one_to_one, without_duplicates
from lora_detr.matchers.topk import TopK
from lora_detr.structures import Assignment, Matcher, PaddedTargets, Prediction


class BranchMatching:
    """Match a stack of branches [N * L, B, Q, ...], branch by branch or several at once.

    Args:
        matchers: one for each branch. Consecutive ``TopK`` with equal options run as one stack.
        num_layers: L.
        config: whether one-to-one pairs are added, and what becomes of queries with several pairs.

    Raises:
        ValueError: pairs are to be added, which compares scores, but a matcher is no ``TopK``.
    """

    def __init__(self, matchers: Sequence[Matcher], num_layers: int, config: BranchLossConfig | None = None) -> None:
        self.config = config or BranchLossConfig()
        if self.config.merge_one_to_one and not all(isinstance(matcher, TopK) for matcher in matchers):
            raise ValueError("loss.branch.merge_one_to_one compares scores and needs TopK matchers")
        self.stacks = _stack_matchers(matchers, num_layers)

    @property
    def uses_queries_once(self) -> bool:
        """Whether no query of a branch is ever paired with two targets."""
        return self.config.merge_one_to_one or self.config.duplicates == "clean"

    def __call__(
        self, stack: Prediction, targets: PaddedTargets, one_to_one: Assignment, priority: Tensor | None
    ) -> Assignment:
        """Return the pairs of all branches.

        Args:
            stack: logits [N * L, B, Q, K], boxes [N * L, B, Q, 4].
            targets: of the batch.
            one_to_one: the primary's pairs, [L, B, T, 1]; read only if they are to be added.
            priority: float [N * L, B, Q] in place of the random draw that caps candidates.
        """
        # Conflicts are settled here and not by matchers, which may give a query two targets (the official top-k does):
        # what becomes of them is a setting of the loss.
        parts = []
        start = 0
        for matcher, groups in self.stacks:
            part = Prediction(stack.logits[start : start + groups], stack.boxes[start : start + groups])
            if isinstance(matcher, TopK):
                score = matcher.score(part, targets)
                chosen = None if priority is None else priority[start : start + groups]
                pairs = matcher.match(score, targets.mask, chosen)
                # While the scores of this part exist. What the primary trains as an object is then background to no
                # branch, as in the authors' code for 900 queries.
                if self.config.merge_one_to_one:
                    pairs = merge_one_to_one(pairs, one_to_one, score)
            else:
                pairs = matcher(part, targets)
            parts.append(pairs)
            start += groups
        pairs = _join(parts)
        # After merging, which leaves no duplicates, and once for all branches.
        if self.config.duplicates == "clean":
            pairs = without_duplicates(pairs, stack.logits.shape[-2])
        return pairs


def _stack_matchers(matchers: Sequence[Matcher], num_layers: int) -> list[tuple[Matcher, int]]:
    """Join consecutive ``TopK`` of equal options; return matchers with the number of groups each handles."""
    stacks: list[tuple[Matcher, int]] = []
    run: list[TopK] = []
    for matcher in [*matchers, None]:
        fits = isinstance(matcher, TopK) and len(matcher.k) == 1 and (not run or run[0].options == matcher.options)
        if run and not fits:
            stacks.append((TopK.stacked(run, num_layers), num_layers * len(run)))
            run = []
        if isinstance(matcher, TopK) and len(matcher.k) == 1:
            run.append(matcher)
        elif matcher is not None:
            stacks.append((matcher, num_layers))
    return stacks


def _join(parts: Sequence[Assignment]) -> Assignment:
    """Concatenate assignments along their groups, padding each to the largest k."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.query.shape[-1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, width - tensor.shape[-1]))

    return replace(
        parts[0],
        query=torch.cat([padded(part.query) for part in parts]),
        score=torch.cat([padded(part.score) for part in parts]),
        mask=torch.cat([padded(part.mask) for part in parts]),
    )
