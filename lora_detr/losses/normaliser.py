"""What losses are divided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["exact", "official"]


@dataclass(frozen=True)
class Normaliser:
    """The number of targets of a step, as losses are divided by it.

    Attributes:
        total: objects on all ranks and in all micro-batches.
        world_size: number of ranks.
        rule: ``exact``, max(total, 1) / ranks, so that loss and gradient do not depend on the number of ranks; or
            ``official``, max(total / ranks, 1).
    """

    total: float
    world_size: int = 1
    rule: Rule = "exact"

    def of(self, copies: int = 1) -> float:
        """Return the divisor where every target counts ``copies`` times."""
        total = self.total * copies
        # Data-parallel training averages gradients over ranks, so dividing by the mean number of targets per rank gives
        # the gradient of one process on the whole batch. At least 1, since a batch may have no object; the official
        # rule bounds the mean and not the total, so a few objects on many ranks weigh less.
        if self.rule == "exact":
            return max(total, 1.0) / self.world_size
        return max(total / self.world_size, 1.0)
