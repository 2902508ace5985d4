"""Self-attention and deformable attention, each with its residual and norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.ops.deform_attn import deformable_sampling


class SelfAttentionBlock(nn.Module):
    """Let queries attend to each other: norm(x + dropout(MHA(x + p, x + p, x))).

    Args:
        hidden_dim: D, width of a query.
        heads: number of attention heads; divides D.
        dropout: on the attention weights and on the result.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden_dim, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, queries: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the updated queries [B, Q, D].

        Args:
            queries: [B, Q, D].
            position: [B, Q, D], added to what is compared and not to what is summed.
            mask: bool [Q, Q], true where attention is blocked, or a float bias [B * heads, Q, Q] that is added to the
                logits, image by image.
        """
        compared = queries + position
        update, _ = self.attention(compared, compared, queries, attn_mask=mask, need_weights=False)
        out: Tensor = self.norm(queries + self.dropout(update))
        return out


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., 2021).

    Args:
        hidden_dim: D; divisible by ``heads``.
        heads: number of heads.
        levels: number of feature levels.
        points: sampling points a head takes from each level.
    """

    def __init__(self, hidden_dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(hidden_dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(hidden_dim, heads * levels * points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)

    def initialise(self) -> None:
        """Start from equal weights and offsets that point outwards, one direction a head, point p at distance p + 1."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the unit square, as in the original
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        ring = directions[:, None, None, :] * distances[None, None, :, None]  # [heads, 1, points, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor,
    ) -> Tensor:
        """Return the attended features [B, Q, D].

        Args:
            queries: [B, Q, D], position already added.
            reference: [B, Q, levels, 2] points or [B, Q, levels, 4] boxes, relative to each level as padded.
            memory: [B, S, D].
            shapes: (height, width) of each level.
            padding: bool [B, S]; values there are zeroed.
        """
        batch, count, _ = queries.shape
        value = self.value_proj(memory).masked_fill(padding[..., None], 0.0)
        value = value.view(batch, memory.shape[1], self.heads, -1)
        offsets = self.sampling_offsets(queries).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(queries).view(batch, count, self.heads, self.levels * self.points)
        weights = weights.softmax(-1).view(batch, count, self.heads, self.levels, self.points)
        anchor = reference[:, :, None, :, None, :]  # [B, Q, 1, levels, 1, 2 or 4]
        if reference.shape[-1] == 2:
            # A function of the module and no method: an export follows sizes through the former alone.
            sides = [(width, height) for height, width in shapes]
            extent = torch.tensor(sides, dtype=queries.dtype, device=queries.device)  # [levels, 2]
            locations = anchor + offsets / extent[:, None, :]
        else:
            locations = anchor[..., :2] + offsets / self.points * anchor[..., 2:] * 0.5
        out: Tensor = self.output_proj(deformable_sampling(value, shapes, locations, weights))
        return out


class DeformableBlock(nn.Module):
    """Deformable attention with its residual, dropout and norm: norm(x + dropout(attention(x + p)))."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self.attention = DeformableAttention(sizes.hidden_dim, sizes.heads, sizes.levels, sizes.points)
        self.dropout = nn.Dropout(sizes.dropout)
        self.norm = nn.LayerNorm(sizes.hidden_dim)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor,
    ) -> Tensor:
        """Return the updated queries [B, Q, D]; arguments as for ``DeformableAttention.forward``."""
        update = self.attention(queries + position, reference, memory, shapes, padding)
        out: Tensor = self.norm(queries + self.dropout(update))
        return out
