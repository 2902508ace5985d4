"""The decoder of Relation-DETR: boxes of one layer bias the self-attention of the next (Hou et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.models.decoder import INFERENCE, DecoderLayer, DecoderPass, LayerStates, on_levels
from lora_detr.models.heads import Heads
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Tokens
from lora_detr.models.proposals import InitialQueries
from lora_detr.ops.positional import TEMPERATURE, box_encoding, sine
from lora_detr.structures import DecoderLayerOutput

# Added to each width and height before they are divided or taken the logarithm of.
SMALLEST_SIDE = 1e-5
# Channels of the sine encoding of each of the four relations, and the factor on them before it.
RELATION_WIDTH, RELATION_SCALE = 16, 100.0


def box_relations(source: Tensor, target: Tensor) -> Tensor:
    """Return how each target box lies relative to each source box, [..., Q, Q, 4].

    With source (cx1, cy1, w1, h1) and target (cx2, cy2, w2, h2):
    log(|cx1 - cx2| / w1 + 1), log(|cy1 - cy2| / h1 + 1), log(w1 / w2), log(h1 / h2).

    Args:
        source: boxes [..., Q, 4].
        target: boxes [..., Q, 4].
    """
    centre, size = source[..., :, None, :].split(2, dim=-1)  # [..., Q, 1, 2]
    other_centre, other_size = target[..., None, :, :].split(2, dim=-1)  # [..., 1, Q, 2]
    size, other_size = size + SMALLEST_SIDE, other_size + SMALLEST_SIDE
    distance = torch.log((centre - other_centre).abs() / size + 1)
    return torch.cat((distance, torch.log(size / other_size)), dim=-1)


class PositionRelation(nn.Module):
    """Turn the relations of boxes into a bias of attention logits, one value a head, at least 0.

    Args:
        heads: of the attention.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(4 * RELATION_WIDTH, heads, 1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the bias [B, heads, Q, Q] of queries at ``source`` towards those at ``target``, both [B, Q, 4].

        No gradient reaches the boxes.
        """
        with torch.no_grad():
            relations = box_relations(source.float(), target.float())  # [B, Q, Q, 4]
            encoding = sine(relations * RELATION_SCALE, RELATION_WIDTH, TEMPERATURE).flatten(-2)
        bias: Tensor = F.relu(self.projection(encoding.permute(0, 3, 1, 2)))
        return bias


class TwoLayers(nn.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, inputs: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(inputs, hidden_dim), nn.Linear(hidden_dim, hidden_dim)))

    def forward(self, values: Tensor) -> Tensor:
        """Map [..., inputs] to [..., D]."""
        out: Tensor = self.layers[1](F.relu(self.layers[0](values)))
        return out


class RelationDecoder(nn.Module):
    """A stack of decoder layers whose self-attention knows where the boxes lie.

    Args:
        layers: L.
        sizes: of each layer.
    """

    def __init__(self, layers: int, sizes: BlockSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(layers))
        self.reference_projection = TwoLayers(2 * sizes.hidden_dim, sizes.hidden_dim)
        self.query_scale = TwoLayers(sizes.hidden_dim, sizes.hidden_dim)
        self.relation = PositionRelation(sizes.heads)
        self.coordinate_width = sizes.hidden_dim // 2

    def forward(
        self, queries: InitialQueries, memory: Tensor, tokens: Tokens, heads: Heads, run: DecoderPass = INFERENCE
    ) -> tuple[DecoderLayerOutput, ...]:
        """Return the output of each layer, first layer first.

        A layer's boxes refine its reference, whose gradient reaches the box head of the layer before (look forward
        twice); the next reference is made by the same head without the norm that heads share.
        """
        hidden, reference = queries.content, queries.reference
        mask, source = run.mask, queries.reference
        outputs: list[DecoderLayerOutput] = []
        for i, layer in enumerate(self.layers):
            around = on_levels(reference, tokens)  # [B, Q, levels, 4]
            position = self._position(around[:, :, 0], hidden if i else None)
            states: LayerStates = layer(hidden, position, around, memory, tokens, mask, run.self_attention)
            prediction = heads.predict(i, states.hidden, reference)
            outputs.append(states.publish(reference, prediction))
            hidden = states.hidden
            if i + 1 == len(self.layers):
                break
            if run.relation and run.self_attention:
                mask = self._bias(source, prediction.boxes, run.mask)
                source = prediction.boxes
            reference = heads.refine(i, hidden, reference.detach())
        return tuple(outputs)

    def _position(self, reference: Tensor, hidden: Tensor | None) -> Tensor:
        """Return positions [B, Q, D] of references [B, Q, 4], scaled by the hidden state from the second layer on."""
        cy_first = reference[..., [1, 0, 2, 3]]
        position: Tensor = self.reference_projection(box_encoding(cy_first, self.coordinate_width))
        return position if hidden is None else position * self.query_scale(hidden)

    def _bias(self, source: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the additive mask of the next layer's self-attention, [B * heads, Q, Q]."""
        bias: Tensor = self.relation(source, target).flatten(0, 1)
        return bias if mask is None else bias.masked_fill(mask, -torch.inf)
