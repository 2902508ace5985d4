"""Branches with a feed-forward network of their own (paper, Figure 1b and 1c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lora_detr.config.base import Strict
from lora_detr.errors import ConfigError
from lora_detr.matchers import MatcherConfig
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.structures import DecoderLayerOutput, FeedForwardLike


class FFNBranch(nn.Module):
    """An independent feed-forward network and norm beside that of every decoder layer.

    Args:
        num_layers: L.
        hidden_dim: D.
        ffn_dim: F; each layer has 2 D F + F + 3 D parameters.
        dropout: as in the decoder.
        reads: ``ffn_input``, what the primary's network reads (Figure 1c); or ``cross_output``, the feature after
            cross-attention (MS-DETR, Figure 1b), where boxes also follow the primary's reference with its gradient.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        ffn_dim: int,
        dropout: float,
        reads: Literal["ffn_input", "cross_output"] = "ffn_input",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FeedForward(hidden_dim, ffn_dim, dropout) for _ in range(num_layers))
        self.reads = reads
        self.follows_reference = reads == "cross_output"
        # Both matrices by Xavier, as all of the transformer (authors' code).
        for layer in self.layers:
            assert isinstance(layer, FeedForward)
            nn.init.xavier_uniform_(layer.linear1.weight)
            nn.init.xavier_uniform_(layer.linear2.weight)

    def forward(self, layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput) -> Tensor:
        """Return this branch's hidden states [B, Q, D] at a decoder layer; ``ffn`` is not read."""
        inputs = output.ffn_input if self.reads == "ffn_input" else output.cross_output
        return cast(FeedForward, self.layers[layer]).output(inputs)

    @torch.no_grad()
    def merge_into(self, layer: int, ffn: FeedForwardLike) -> None:
        """Replace a feed-forward network and its norm by this branch's, in place.

        Raises:
            ConfigError: the branch reads something else than that network does.
        """
        if self.reads != "ffn_input":
            raise ConfigError(
                "--branch: a cross-ffn branch reads the feature before self-attention, so it cannot take the place of "
                "the feed-forward network",
                "leave --branch out to keep the primary path",
            )
        own = cast(FeedForward, self.layers[layer])
        for mine, theirs in ((own.linear1, ffn.linear1), (own.linear2, ffn.linear2), (own.norm, ffn.norm)):
            theirs.load_state_dict(mine.state_dict())

    @staticmethod
    def forward_stack(
        branches: Sequence[FFNBranch], layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput
    ) -> Tensor:
        """Return the hidden states of several branches [N, B, Q, D]."""
        return torch.stack([branch(layer, ffn, output) for branch in branches])


class FFNConfig(Strict):
    """A branch with its own feed-forward network, and how it is matched."""

    kind: Literal["ffn"] = "ffn"
    matcher: MatcherConfig
    """One-to-many assignment of this branch."""

    def build(self, num_layers: int, hidden_dim: int, ffn_dim: int, dropout: float) -> FFNBranch:
        """Build the branch for a decoder of the given sizes."""
        return FFNBranch(num_layers, hidden_dim, ffn_dim, dropout)


class CrossFFNConfig(Strict):
    """A branch with its own feed-forward network on the feature after cross-attention (MS-DETR)."""

    kind: Literal["cross-ffn"] = "cross-ffn"
    matcher: MatcherConfig
    """One-to-many assignment of this branch."""

    def build(self, num_layers: int, hidden_dim: int, ffn_dim: int, dropout: float) -> FFNBranch:
        """Build the branch for a decoder of the given sizes."""
        return FFNBranch(num_layers, hidden_dim, ffn_dim, dropout, "cross_output")
