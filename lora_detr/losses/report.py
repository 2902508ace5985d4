"""What a criterion returns: a total to differentiate, and every term by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from lora_detr.ops.host import to_host
from lora_detr.structures import OwnLoss

Kind = Literal["class", "l1", "giou", "fgl", "ddf"]
# Without what only D-FINE has. Also the order in which ``all_terms`` lays out the terms of a group.
KINDS: tuple[Kind, ...] = ("class", "l1", "giou")


@dataclass(frozen=True)
class LossKey:
    """Where a loss term comes from.

    Attributes:
        source: ``primary``, ``encoder``, or the name of a branch or query group; ``NAME_start`` for what the first
            decoder layer starts from.
        layer: decoder layer, 0 first; None for the encoder.
        kind: which loss.
    """

    source: str
    layer: int | None
    kind: Kind

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"/layer{self.layer}"
        return f"{self.source}{layer}/{self.kind}"


@dataclass(frozen=True)
class LossTerm:
    """One term on the host: its value before weighting, and its weight."""

    key: LossKey
    value: float
    weight: float


@dataclass(frozen=True)
class LossReport:
    """All terms of a step.

    Attributes:
        total: scalar, the weighted sum, with gradient.
        keys: names of the terms.
        values: [n], detached, before weighting.
        weights: of the terms.
        weighted: [n], the terms that ``total`` is the sum of, with gradient until ``detached``.
    """

    total: Tensor
    keys: tuple[LossKey, ...]
    values: Tensor
    weights: tuple[float, ...]
    weighted: Tensor

    def detached(self) -> LossReport:
        """Return the same numbers without what a gradient needs."""
        return replace(self, total=self.total.detach(), weighted=self.weighted.detach())

    def joined(self, other: LossReport) -> LossReport:
        """Return the terms of both; the total is the sum."""
        return LossReport(
            self.total + other.total,
            self.keys + other.keys,
            torch.cat((self.values, other.values)),
            self.weights + other.weights,
            torch.cat((self.weighted, other.weighted)),
        )

    def scaled(self, share: float) -> LossReport:
        """Return the report of a share of the loss."""
        return replace(self, total=self.total * share, values=self.values * share, weighted=self.weighted * share)

    def terms(self) -> tuple[LossTerm, ...]:
        """Return the terms on the host, after one copy."""
        return named_terms(self.keys, to_host(self.values).tolist(), self.weights)


def report_of(own: OwnLoss) -> LossReport:
    """Return what a detector's own loss gave; its total is taken as it is, and not summed from the terms again."""
    keys = tuple(LossKey(term.source, term.layer, cast(Kind, term.kind)) for term in own.terms)
    values, weights = torch.stack([term.value for term in own.terms]), tuple(term.weight for term in own.terms)
    return LossReport(own.total, keys, values.detach(), weights, values * values.new_tensor(weights))


def named_terms(keys: Sequence[LossKey], values: Sequence[float], weights: Sequence[float]) -> tuple[LossTerm, ...]:
    """Join names, values and weights."""
    return tuple(LossTerm(*term) for term in zip(keys, values, weights, strict=True))
