"""The deformable decoder: refines boxes layer by layer and publishes what each layer did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lora_detr.models.heads import Heads
from lora_detr.models.layers.attention import DeformableBlock, SelfAttentionBlock
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Tokens
from lora_detr.models.proposals import InitialQueries
from lora_detr.structures import DecoderLayerOutput, Prediction

Order = Literal["self-first", "cross-first"]


@dataclass(frozen=True)
class DecoderPass:
    """How one run through the decoder is done; the defaults are those of inference.

    Attributes:
        mask: bool [Q, Q], true where a query (row) may not attend to another (column); None blocks nothing.
        self_attention: false leaves it out in every layer (DAC-DETR).
        relation: false leaves out the position relation, where a decoder has one.
    """

    mask: Tensor | None = None
    self_attention: bool = True
    relation: bool = True


INFERENCE = DecoderPass()


@dataclass(frozen=True)
class LayerStates:
    """Hidden states of one decoder layer; see ``DecoderLayerOutput``, which has the same names."""

    cross_output: Tensor
    ffn_input: Tensor
    ffn_hidden: Tensor
    hidden: Tensor

    def publish(self, reference: Tensor, prediction: Prediction) -> DecoderLayerOutput:
        """Join the states with the reference [B, Q, 4] and with what the heads made of them."""
        return DecoderLayerOutput(
            self.cross_output, self.ffn_input, self.ffn_hidden, self.hidden, reference, prediction
        )


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network.

    Args:
        sizes: of its blocks.
        order: ``self-first`` (paper, Figure 1a), or ``cross-first``, self-attention between cross-attention and
            feed-forward network (MS-DETR; paper, Figure 1b).
    """

    def __init__(self, sizes: BlockSizes, order: Order = "self-first") -> None:
        super().__init__()
        self.order = order
        self.self_attention = SelfAttentionBlock(sizes.hidden_dim, sizes.heads, sizes.dropout)
        self.cross_attention = DeformableBlock(sizes)
        self.ffn = FeedForward(sizes.hidden_dim, sizes.ffn_dim, sizes.dropout)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        tokens: Tokens,
        mask: Tensor | None = None,
        self_attention: bool = True,
    ) -> LayerStates:
        """Run the layer.

        Args:
            hidden: [B, Q, D].
            position: [B, Q, D], added wherever queries are compared.
            reference: [B, Q, levels, 4], relative to each level as padded.
            memory: [B, S, D].
            tokens: shapes and padding of the memory.
            mask: as for ``SelfAttentionBlock.forward``.
            self_attention: false skips it.
        """
        if self.order == "cross-first":
            crossed = self.cross_attention(hidden, position, reference, memory, tokens.shapes, tokens.padding)
            inputs = self.self_attention(crossed, position, mask) if self_attention else crossed
        else:
            attended = self.self_attention(hidden, position, mask) if self_attention else hidden
            crossed = self.cross_attention(attended, position, reference, memory, tokens.shapes, tokens.padding)
            inputs = crossed
        ffn_hidden, out = self.ffn(inputs)
        return LayerStates(crossed, inputs, ffn_hidden, out)


def on_levels(reference: Tensor, tokens: Tokens) -> Tensor:
    """Return references [B, Q, 4] relative to each level as padded, [B, Q, levels, 4], detached."""
    scale = torch.cat((tokens.valid_ratios, tokens.valid_ratios), -1)[:, None]  # [B, 1, levels, 4]
    return reference.detach()[:, :, None] * scale


class DeformableDecoder(nn.Module):
    """A stack of decoder layers with iterative box refinement.

    Args:
        layers: L.
        sizes: of each layer.
        look_forward_twice: let the box of layer l also train the box head of layer l - 1 (Zhang et al., 2022).
        order: of the attentions in a layer.
    """

    def __init__(self, layers: int, sizes: BlockSizes, look_forward_twice: bool, order: Order = "self-first") -> None:
        super().__init__()
        self.look_forward_twice = look_forward_twice
        self.layers = nn.ModuleList(DecoderLayer(sizes, order) for _ in range(layers))

    def forward(
        self, queries: InitialQueries, memory: Tensor, tokens: Tokens, heads: Heads, run: DecoderPass = INFERENCE
    ) -> tuple[DecoderLayerOutput, ...]:
        """Return the output of each layer, first layer first."""
        assert queries.position is not None
        hidden, reference = queries.content, queries.reference
        outputs: list[DecoderLayerOutput] = []
        for i, layer in enumerate(self.layers):
            states: LayerStates = layer(
                hidden,
                queries.position,
                on_levels(reference, tokens),
                memory,
                tokens,
                run.mask,
                run.self_attention,
            )
            base = reference if self.look_forward_twice else reference.detach()
            prediction = heads.predict(i, states.hidden, base)
            outputs.append(states.publish(base, prediction))
            hidden, reference = states.hidden, prediction.boxes
        return tuple(outputs)
