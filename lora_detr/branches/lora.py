"""LoRA branches: a low-rank term beside each linear layer of every decoder FFN (LoRA-DETR Eqs. 3-4).

            x ----+-----------------.
                  |                  \\
              W1 x + b1            (x A1) B1        A1 [D, r], B1 [r, F]
                  |                  /
                  +-------- + ------'
                            h = relu(.)
                  .-----------------.
              W2 h + b2            (h A2) B2        A2 [F, r], B2 [r, D]
                  '-------- + ------'
                     norm(x + .)                    shared with the primary path
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lora_detr.config.base import Strict
from lora_detr.matchers import MatcherConfig
from lora_detr.structures import DecoderLayerOutput, FeedForwardLike

Initialisation = Literal["xavier", "zero-b"]


class LoRALayer(nn.Module):
    """The four matrices of one branch at one decoder layer.

    Attributes:
        a1: [D, r]; b1: [r, F]; beside W1.
        a2: [F, r]; b2: [r, D]; beside W2.
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, rank: int, initialisation: Initialisation) -> None:
        super().__init__()
        self.a1 = nn.Parameter(torch.empty(hidden_dim, rank))
        self.b1 = nn.Parameter(torch.empty(rank, ffn_dim))
        self.a2 = nn.Parameter(torch.empty(ffn_dim, rank))
        self.b2 = nn.Parameter(torch.empty(rank, hidden_dim))
        for a, b in ((self.a1, self.b1), (self.a2, self.b2)):
            # The authors' Deformable code draws every matrix of the transformer by Xavier, A and B included.
            if initialisation == "xavier":
                nn.init.xavier_uniform_(a)
                nn.init.xavier_uniform_(b)
            else:
                # LoRA's own start (Hu et al., 2022): x A B = 0, so the branch begins as the primary path.
                nn.init.normal_(a, std=rank**-0.5)
                nn.init.zeros_(b)


class LoRABranch(nn.Module):
    """One branch over all decoder layers.

    Args:
        num_layers: L.
        hidden_dim: D.
        ffn_dim: F.
        rank: r; each layer has 2 r (D + F) parameters.
        initialisation: ``xavier`` on A and B (the branch differs from the primary path at the start), or ``zero-b``:
            A normal with variance 1 / r and B zero (it starts equal).
    """

    # The reference that boxes refine is detached: a branch trains its own layer, not the layer before.
    follows_reference = False

    def __init__(
        self, num_layers: int, hidden_dim: int, ffn_dim: int, rank: int, initialisation: Initialisation
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LoRALayer(hidden_dim, ffn_dim, rank, initialisation) for _ in range(num_layers))

    def forward(self, layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput) -> Tensor:
        """Return this branch's hidden states [B, Q, D] at a decoder layer."""
        return lora_feed_forward([self], layer, ffn, output)[0]

    @torch.no_grad()
    def merge_into(self, layer: int, ffn: FeedForwardLike) -> None:
        """Add this branch's B A to the weights of a feed-forward network, in place: it then computes the branch."""
        member = self.layers[layer]
        assert isinstance(member, LoRALayer)
        ffn.linear1.weight += (member.a1 @ member.b1).T
        ffn.linear2.weight += (member.a2 @ member.b2).T

    @staticmethod
    def forward_stack(
        branches: Sequence[LoRABranch], layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput
    ) -> Tensor:
        """Return the hidden states of several branches [N, B, Q, D], computed together."""
        return lora_feed_forward(branches, layer, ffn, output)


def lora_feed_forward(
    branches: Sequence[LoRABranch], layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput
) -> Tensor:
    """Run a decoder layer's FFN once for each branch, with W1 x shared and all low-rank terms in one product.

    Additive: x A B is never expanded to a matrix of the size of W. Ranks may differ; the smaller are padded with zeros.

    Args:
        branches: N of them.
        layer: decoder layer.
        ffn: its feed-forward network.
        output: what the layer published; ``ffn_input`` [B, Q, D] and ``ffn_hidden`` [B, Q, F] are read.

    Returns:
        [N, B, Q, D].
    """
    members = [cast(LoRALayer, branch.layers[layer]) for branch in branches]
    a1, b1 = _stack_ranks([m.a1 for m in members], [m.b1 for m in members])
    a2, b2 = _stack_ranks([m.a2 for m in members], [m.b2 for m in members])
    inputs = output.ffn_input.flatten(0, 1)  # [B*Q, D]
    # No factor alpha / r: Eqs. 3-4 have none.
    low_rank = inputs @ a1 @ b1  # [N, B*Q, F]
    hidden = ffn.activate(output.ffn_hidden.flatten(0, 1) + low_rank)
    projected = ffn.linear2(hidden) + hidden @ a2 @ b2  # [N, B*Q, D]
    out: Tensor = ffn.finish(inputs, projected).unflatten(1, output.ffn_input.shape[:2])
    return out


@torch.no_grad()
def share_first_draw(branches: Sequence[LoRABranch]) -> None:
    """Copy A of the first branch's first layer to all layers of all branches of the same rank, in place."""
    # Only to start as the authors' Relation-DETR code does. With B zero, predictions are the same either way, but A
    # decides the first gradient of B.
    layers = [cast(LoRALayer, layer) for branch in branches for layer in branch.layers]
    for layer in layers[1:]:
        if layer.a1.shape == layers[0].a1.shape:
            layer.a1.copy_(layers[0].a1)
            layer.a2.copy_(layers[0].a2)


def _stack_ranks(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack matrices A [in, r_i] and B [r_i, out] of branches to [N, in, r] and [N, r, out] with r the largest rank."""
    rank = max(matrix.shape[1] for matrix in a)
    return (
        torch.stack([F.pad(matrix, (0, rank - matrix.shape[1])) for matrix in a]),
        torch.stack([F.pad(matrix, (0, 0, 0, rank - matrix.shape[0])) for matrix in b]),
    )


class LoRAConfig(Strict):
    """A LoRA branch and how it is matched."""

    kind: Literal["lora"] = "lora"
    # Best of 16, 32 and 64 in Table 5.
    rank: int = Field(32, ge=1, le=8192)
    """r, rank of the low-rank terms."""
    initialisation: Initialisation = "xavier"
    """``xavier`` on A and B (Deformable family), or ``zero-b`` (Relation family)."""
    shared_draw: bool = False
    """A starts from one draw in all layers of all branches that say so (authors' Relation-DETR code)."""
    matcher: MatcherConfig
    """One-to-many assignment of this branch."""

    def build(self, num_layers: int, hidden_dim: int, ffn_dim: int, dropout: float) -> LoRABranch:
        """Build the branch for a decoder of the given sizes; dropout is that of the network it stands beside."""
        return LoRABranch(num_layers, hidden_dim, ffn_dim, self.rank, self.initialisation)
