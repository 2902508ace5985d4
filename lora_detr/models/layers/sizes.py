"""The sizes that all blocks of a transformer have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of the attentions and feed-forward networks of encoder and decoder.

    Attributes:
        hidden_dim: D.
        ffn_dim: F.
        heads: of each attention; divides D.
        levels: of the memory.
        points: sampled on each level.
        dropout: probability, in all blocks.
    """

    hidden_dim: int
    ffn_dim: int
    heads: int
    levels: int
    points: int
    dropout: float
