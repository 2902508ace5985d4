"""The deformable decoder: refines boxes layer by layer and publishes what each layer did."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_detr.models.heads import Heads
from lora_detr.models.layers.attention import DeformableBlock, SelfAttentionBlock
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.neck import Tokens
from lora_detr.models.proposals import InitialQueries
from lora_detr.structures import DecoderLayerOutput


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network (paper, Figure 1a)."""

    def __init__(self, hidden_dim: int, ffn_dim: int, heads: int, levels: int, points: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = SelfAttentionBlock(hidden_dim, heads, dropout)
        self.cross_attention = DeformableBlock(hidden_dim, heads, levels, points, dropout)
        self.ffn = FeedForward(hidden_dim, ffn_dim, dropout)


class DeformableDecoder(nn.Module):
    """A stack of decoder layers with iterative box refinement.

    Args:
        layers: L.
        hidden_dim: D.
        ffn_dim: F.
        heads: of both attentions.
        levels: of the memory.
        points: sampled on each level.
        dropout: of all blocks.
        look_forward_twice: let the box of layer l also train the box head of layer l - 1 (Zhang et al., 2022).
    """

    def __init__(
        self,
        layers: int,
        hidden_dim: int,
        ffn_dim: int,
        heads: int,
        levels: int,
        points: int,
        dropout: float,
        look_forward_twice: bool,
    ) -> None:
        super().__init__()
        self.look_forward_twice = look_forward_twice
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim, ffn_dim, heads, levels, points, dropout) for _ in range(layers)
        )

    def forward(
        self, queries: InitialQueries, memory: Tensor, tokens: Tokens, heads: Heads
    ) -> tuple[DecoderLayerOutput, ...]:
        """Return the output of each layer, first layer first."""
        hidden, reference = queries.content, queries.reference
        scale = torch.cat((tokens.valid_ratios, tokens.valid_ratios), -1)[:, None]  # [B, 1, levels, 4]
        outputs: list[DecoderLayerOutput] = []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            attended = layer.self_attention(hidden, queries.position)
            sampled_around = reference.detach()[:, :, None] * scale  # [B, Q, levels, 4]
            crossed = layer.cross_attention(
                attended, queries.position, sampled_around, memory, tokens.shapes, tokens.padding
            )
            ffn_hidden, hidden = layer.ffn(crossed)
            base = reference if self.look_forward_twice else reference.detach()
            prediction = heads.predict(i, hidden, base)
            outputs.append(DecoderLayerOutput(crossed, crossed, ffn_hidden, hidden, base, prediction))
            reference = prediction.boxes
        return tuple(outputs)
