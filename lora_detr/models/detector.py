"""The detector: backbone, neck, encoder, proposals, decoder, heads, composed once for every member of the family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_detr.models.decoder import DecoderLayer, DeformableDecoder
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.layers.attention import DeformableAttention
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.neck import Neck, Tokens, flatten_levels
from lora_detr.models.proposals import Proposals
from lora_detr.structures import Backbone, DetectorOutput, Images, Prediction, Target


class TwoStageDetector(nn.Module):
    """A two-stage deformable detector. It knows nothing of branches: those read what ``forward`` publishes.

    Args:
        backbone: gives feature maps, finest first; a module of its own, or None for tests that start at the levels.
        neck: projects the maps to width D.
        encoder: refines the memory.
        proposals: choose the initial queries.
        decoder: refines queries and boxes.
        heads: L + 1 pairs, the last for the proposals.
        hidden_dim: D.
        levels: number of feature levels.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        encoder: DeformableEncoder,
        proposals: Proposals,
        decoder: DeformableDecoder,
        heads: Heads,
        hidden_dim: int,
        levels: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.level_embedding = nn.Parameter(torch.empty(levels, hidden_dim))
        self.encoder = encoder
        self.proposals = proposals
        self.decoder = decoder
        self.heads = heads

    @property
    def num_classes(self) -> int:
        """K, the width of the class heads."""
        head = self.heads.classes[0]
        assert isinstance(head, nn.Linear)
        return head.out_features

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.decoder.layers)

    def initialise(self) -> None:
        """Initialise everything but the backbone, as the Deformable family does.

        Each weight of the transformer with more than one axis is Xavier-uniform (a packed attention projection
        counts as one matrix), deformable attention and heads have their own start, biases keep PyTorch's.
        """
        for part in (self.encoder, self.proposals, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()
        if self.proposals.content is not None:
            nn.init.normal_(self.proposals.content.weight)
        nn.init.normal_(self.level_embedding)
        self.neck.initialise()
        self.heads.initialise()

    def ffn(self, layer: int) -> FeedForward:
        """Return the feed-forward network of decoder layer ``layer``."""
        decoder_layer = self.decoder.layers[layer]
        assert isinstance(decoder_layer, DecoderLayer)
        return decoder_layer.ffn

    def predict(self, layer: int, hidden: Tensor, reference: Tensor) -> Prediction:
        """Apply the heads of a decoder layer; shapes as for ``Heads.predict``."""
        return self.heads.predict(layer, hidden, reference)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Detect objects in a padded batch.

        Args:
            images: the batch.
            targets: read by query groups in training only; this detector has none and ignores them.
        """
        levels = self.neck(self.backbone(images.pixels))
        return self.decode(flatten_levels(levels, images.padding, self.level_embedding))

    def decode(self, tokens: Tokens) -> DetectorOutput:
        """Run everything after the neck."""
        memory = self.encoder(tokens)
        encoder, queries = self.proposals(memory, tokens, self.heads)
        layers = self.decoder(queries, memory, tokens, self.heads)
        return DetectorOutput(layers, encoder, queries.reference, memory)
