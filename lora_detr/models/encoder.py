"""The deformable encoder: every memory token attends to points around itself on all levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_detr.models.layers.attention import DeformableBlock
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Tokens


class EncoderLayer(nn.Module):
    """Deformable self-attention over the memory, then a feed-forward network."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self.attention = DeformableBlock(sizes)
        self.ffn = FeedForward(sizes.hidden_dim, sizes.ffn_dim, sizes.dropout)

    def forward(self, memory: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
        """Return the updated memory [B, S, D]."""
        attended = self.attention(memory, tokens.position, reference, memory, tokens.shapes, tokens.padding)
        return self.ffn.output(attended)


def token_centres(shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Return each token's centre [B, S, levels, 2] as (x, y), relative to every level as padded.

    A centre is first expressed relative to the valid part of its own level, then scaled to each level's padding.
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        device = valid_ratios.device
        y = torch.linspace(0.5, height - 0.5, height, dtype=torch.float32, device=device)
        x = torch.linspace(0.5, width - 0.5, width, dtype=torch.float32, device=device)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        ratio = valid_ratios[:, None, level]  # [B, 1, 2]
        centres.append(
            torch.stack(
                (grid_x.reshape(1, -1) / (ratio[..., 0] * width), grid_y.reshape(1, -1) / (ratio[..., 1] * height)), -1
            )
        )
    return torch.cat(centres, 1)[:, :, None] * valid_ratios[:, None]


class DeformableEncoder(nn.Module):
    """A stack of encoder layers that share the reference points.

    Args:
        layers: number of layers.
        sizes: of each layer.
        fusion: return a learned mixture of the input and of all layers' outputs, not the last one (Relation-DETR).
    """

    def __init__(self, layers: int, sizes: BlockSizes, fusion: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(layers))
        self.fusion = _fusion((layers + 1) * sizes.hidden_dim, sizes.hidden_dim) if fusion else None

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the memory [B, S, D]."""
        reference = token_centres(tokens.shapes, tokens.valid_ratios)
        states = [tokens.features]
        for layer in self.layers:
            states.append(layer(states[-1], reference, tokens))
        if self.fusion is None:
            return states[-1]
        fused: Tensor = self.fusion(torch.cat(states, dim=-1))
        return fused


def _fusion(inputs: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim)
    )
