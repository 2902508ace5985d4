"""A view of the feed-forward network of a decoder layer of ``transformers``, opened at its two seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class FeedForwardView:
    """Shows modules of a decoder layer as branches read them; it holds no parameter of its own.

    Attributes:
        layer: whose network it is; says whether dropout is active.
        linear1: W1 of Eq. 2.
        linear2: W2.
        norm: behind the residual.
        activation: between them.
        inner_dropout: probability after the activation.
        outer_dropout: probability after W2.
        limit: bound of the sum before the norm, on both sides; None where there is none.
    """

    layer: nn.Module
    linear1: nn.Linear
    linear2: nn.Linear
    norm: nn.LayerNorm
    activation: Callable[[Tensor], Tensor]
    inner_dropout: float = 0.0
    outer_dropout: float = 0.0
    limit: float | None = None

    def activate(self, hidden: Tensor) -> Tensor:
        """Return what W2 is given, [..., F]."""
        return F.dropout(self.activation(hidden), self.inner_dropout, self.layer.training)

    def finish(self, inputs: Tensor, projected: Tensor) -> Tensor:
        """Return norm(inputs + dropout(projected)), both [..., D]."""
        summed = inputs + F.dropout(projected, self.outer_dropout, self.layer.training)
        if self.limit is not None:
            summed = summed.clamp(-self.limit, self.limit)
        normed: Tensor = self.norm(summed)
        return normed
