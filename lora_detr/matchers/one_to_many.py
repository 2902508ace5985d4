"""What the settings of all one-to-many matchers have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from lora_detr.config.base import Strict
from lora_detr.structures import Matcher

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
