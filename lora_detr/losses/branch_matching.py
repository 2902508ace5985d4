"""One-to-many matching of several branches at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_detr.errors import ConfigError
from lora_detr.losses.config import BranchLossConfig
from lora_detr.matchers.conflicts import merge_one_to_one, without_duplicates
from lora_detr.matchers.hungarian import LeastCostMatcher, Problem
from lora_detr.matchers.invariants import broken_rule
from lora_detr.matchers.scores import overlap_score
from lora_detr.structures import (
    Assignment,
    Matcher,
    PaddedTargets,
    Prediction,
    RankingMatcher,
    ScoredMatcher,
    StackableMatcher,
)


class WrongMatcherError(ConfigError):
    """A matcher of one's own returned what no matcher may return."""

    # Padding, for one, differs from rank to rank.
    on_all_ranks = False


class BranchMatching:
    """Match a stack of branches [N * L, B, Q, ...], branch by branch or several at once.

    Args:
        matchers: one for each branch. Consecutive ones of a class that are stackable with equal options run as one.
        num_layers: L.
        config: whether one-to-one pairs are added, and what becomes of queries with several pairs.

    Raises:
        ConfigError: pairs are to be added, which compares scores, but a matcher has none.
    """

    def __init__(self, matchers: Sequence[Matcher], num_layers: int, config: BranchLossConfig | None = None) -> None:
        self.config = config or BranchLossConfig()
        without = [type(matcher).__name__ for matcher in matchers if not isinstance(matcher, ScoredMatcher)]
        if self.config.merge_one_to_one and without:
            raise ConfigError(
                f"`loss.branch.merge_one_to_one` compares scores, but the matcher {without[0]} gives none",
                "set it to false, or give the matcher the method `score` of `ScoredMatcher`",
            )
        self.stacks = _stack_matchers(matchers, num_layers)
        # Checking copies to the host, so it is done once, and not with our own, which are tested.
        self.unchecked = {
            id(matcher) for matcher, _ in self.stacks if not type(matcher).__module__.startswith("lora_detr.")
        }

    @property
    def uses_queries_once(self) -> bool:
        """Whether no query of a branch is ever paired with two targets."""
        settled = self.config.merge_one_to_one or self.config.duplicates == "clean"
        return settled or all(getattr(matcher, "unique_queries", False) for matcher, _ in self.stacks)

    @property
    def reads_references(self) -> bool:
        """Whether a matcher looks at the boxes that predictions refine."""
        return any(getattr(matcher, "reads_references", False) for matcher, _ in self.stacks)

    def problems(self, stack: Prediction, targets: PaddedTargets) -> list[Problem]:
        """Return what has to be solved on the host, for those branches that are matched at least cost.

        Args:
            stack: as in the call.
            targets: of the batch.
        """
        return [
            Problem(matcher.cost(_part(stack, own), targets), matcher.repeats, matcher.share, own.start)
            for matcher, own in self._parts()
            if isinstance(matcher, LeastCostMatcher)
        ]

    def __call__(
        self,
        stack: Prediction,
        targets: PaddedTargets,
        one_to_one: Assignment | None,
        priority: Tensor | None,
        solved: Sequence[Assignment] | None = None,
    ) -> Assignment:
        """Return the pairs of all branches.

        Args:
            stack: logits [N * L, B, Q, K], boxes [N * L, B, Q, 4].
            targets: of the batch.
            one_to_one: the primary's pairs, [L, B, T, 1]; read only if they are to be added, and None where the
                detector keeps them to itself.
            priority: float [N * L, B, Q] in place of the random draw that caps candidates.
            solved: the answers to ``problems``; None has each of them solved on its own.

        Raises:
            WrongMatcherError: on the first call, a matcher that is none of ours returned no valid assignment.
        """
        # Conflicts are settled here and not by matchers, which may give a query two targets (the official top-k does):
        # what becomes of them is a setting of the loss.
        if len(self.stacks) > 1:  # most matchers read it, and one operation on all costs what one on a part does
            stack = replace(stack, overlap=overlap_score(stack, targets))
        parts = []
        answers = None if solved is None else iter(solved)
        for matcher, own in self._parts():
            part, score = _part(stack, own), None
            if isinstance(matcher, RankingMatcher):
                score = matcher.score(part, targets)
                chosen = None if priority is None else priority[own]
                pairs = matcher.match(score, targets.mask, chosen)
            elif answers is not None and isinstance(matcher, LeastCostMatcher):
                pairs = matcher.finish(next(answers), part, targets)
            else:
                pairs = matcher(part, targets)
            # What the primary trains as an object is then background to no branch, as in the authors' code for 900
            # queries.
            if self.config.merge_one_to_one and score is None and isinstance(matcher, ScoredMatcher):
                score = matcher.score(part, targets)
            self._check(matcher, pairs, targets, part, score)
            if self.config.merge_one_to_one:
                if one_to_one is None:
                    raise ConfigError(
                        "`loss.branch.merge_one_to_one` needs pairs of the primary, and this detector gives none",
                        "set it to false",
                    )
                assert score is not None
                pairs = merge_one_to_one(pairs, one_to_one, score)
            parts.append(pairs)
        pairs = _join(parts, stack.logits.shape[-2])
        # After merging, which leaves no duplicates, and once for all branches.
        if self.config.duplicates == "clean":
            pairs = without_duplicates(pairs, stack.logits.shape[-2])
        return pairs

    def _parts(self) -> Iterator[tuple[Matcher, slice]]:
        """Give each matcher and its groups of the stack."""
        start = 0
        for matcher, groups in self.stacks:
            yield matcher, slice(start, start + groups)
            start += groups

    def _check(
        self,
        matcher: Matcher,
        pairs: Assignment,
        targets: PaddedTargets,
        part: Prediction,
        score: Tensor | None = None,
    ) -> None:
        if id(matcher) not in self.unchecked:
            return
        self.unchecked.remove(id(matcher))
        groups, batch, queries = part.logits.shape[:3]
        wanted = (groups, batch, targets.mask.shape[1], queries)
        promised = getattr(matcher, "unique_queries", False)
        rule = broken_rule(pairs, targets, queries, groups=groups, unique_queries=promised)
        if score is not None and score.shape != wanted:
            rule = f"scores have the shape {tuple(score.shape)}, expected {wanted}"
        if rule is not None:
            raise WrongMatcherError(
                f"matcher {type(matcher).__name__} broke a rule on the first step: {rule}",
                "see `Matcher` and `Assignment` in lora_detr.structures for what it must return",
            )


def _part(stack: Prediction, own: slice) -> Prediction:
    further = (None if tensor is None else tensor[own] for tensor in (stack.reference, stack.overlap))
    return Prediction(stack.logits[own], stack.boxes[own], *further)


def _stack_matchers(matchers: Sequence[Matcher], num_layers: int) -> list[tuple[Matcher, int]]:
    """Join consecutive matchers that can run as one; return each result with the number of groups each handles."""
    stacks: list[tuple[Matcher, int]] = []
    for _, run in groupby(matchers, key=_alike):
        members = list(run)
        if isinstance(members[0], StackableMatcher):
            same = cast(list[StackableMatcher], members)
            stacks.append((same[0].stacked(same, num_layers), num_layers * len(same)))
        else:
            stacks.append((members[0], num_layers))
    return stacks


def _alike(matcher: Matcher) -> object:
    """Return what is equal for matchers that can run as one."""
    return (type(matcher), matcher.options) if isinstance(matcher, StackableMatcher) else object()


def _join(parts: Sequence[Assignment], queries: int) -> Assignment:
    """Concatenate assignments along their groups, padding each to the largest k."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.query.shape[-1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        missing = width - tensor.shape[-1]
        return F.pad(tensor, (0, missing)) if missing else tensor

    return replace(
        parts[0],
        query=torch.cat([padded(part.query) for part in parts]),
        score=torch.cat([padded(part.score) for part in parts]),
        mask=torch.cat([padded(part.mask) for part in parts]),
        ignored=_ignored(parts, queries),
    )


def _ignored(parts: Sequence[Assignment], queries: int) -> Tensor | None:
    """Return which queries of all parts are ignored, [G, B, Q], or None where no part ignores any."""
    if all(part.ignored is None for part in parts):
        return None
    known = (
        part.mask.new_zeros((*part.mask.shape[:2], queries)) if part.ignored is None else part.ignored for part in parts
    )
    return torch.cat(list(known))
