"""What the settings of all one-to-many matchers have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import ClassVar, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.config.base import Strict
from lora_detr.matchers.scores import overlap_score
from lora_detr.structures import Matcher, PaddedTargets, Prediction

T = TypeVar("T")


class OneToManyConfig(Strict):
    """Settings of a matcher that gives a target several queries."""

    kind: str
    short: ClassVar[Mapping[str, str]] = {}
    """Short names of keys, as papers write them, for ``--branch``."""
    k: int = Field(ge=1)
    """Most queries a target receives."""

    def describe(self) -> str:
        """Return kind and main settings in a few words, for the summary of a run."""
        return f"{self.kind} k={self.k}"

    @abstractmethod
    def build(self) -> Matcher:
        """Build the matcher of one branch."""


class OverlapMatcher:
    """Base of matchers that score pairs by the IoU of the predicted box, and whose groups may differ in k alone.

    Args:
        k: for each group of the stack, or one for all.

    Raises:
        ValueError: a k is smaller than 1.
    """

    def __init__(self, k: Sequence[int]) -> None:
        self.k = checked_k(k)

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers must share to run as one stack: nothing, unless a rule has settings beside k."""
        return ()

    @classmethod
    def stacked(cls, members: Sequence[Self], groups_each: int) -> Self:
        """Return one matcher for a stack in which each member has ``groups_each`` consecutive groups."""
        joined = copy(members[0])
        joined.k = tuple(k for member in members for k in spread(member.k, groups_each))
        return joined

    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the IoU of every pair, float32 [G, B, T, Q]."""
        return overlap_score(prediction, targets)


def checked_k(k: Sequence[int]) -> tuple[int, ...]:
    """Return k of each group.

    Raises:
        ValueError: one is smaller than 1.
    """
    if min(k) < 1:
        raise ValueError(f"k must be at least 1, found {min(k)}")
    return tuple(k)


def per_group(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one value per group, [G] or [1], as a float tensor on the device of ``like``."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def spread(values: Sequence[T], groups: int) -> Sequence[T]:
    """Return a value for each of ``groups`` groups: those given, or the single one repeated."""
    return [*values] * groups if len(values) == 1 else values
