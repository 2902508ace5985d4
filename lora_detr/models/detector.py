"""The detector: backbone, neck, encoder, proposals, decoder, heads, composed once for every member of the family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lora_detr.models.decoder import INFERENCE, DecoderLayer, DecoderPass
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.neck import Neck, Tokens, flatten_levels
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.models.proposals import InitialQueries, Proposals
from lora_detr.models.query_groups import QueryGroups
from lora_detr.structures import Backbone, DecoderLayerOutput, DetectorOutput, Images, Prediction, Target

# Prefix of all that only training reads.
TRAINING_ONLY = "query_groups."


class Decoder(Protocol):
    """Refines queries layer by layer; a module."""

    layers: nn.ModuleList

    def __call__(
        self, queries: InitialQueries, memory: Tensor, tokens: Tokens, heads: Heads, run: DecoderPass = INFERENCE
    ) -> tuple[DecoderLayerOutput, ...]: ...


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
        query_groups: what only training decodes; none by default.
        normalisation: makes of pixels as read what the backbone takes; without it, pixels must be float.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        encoder: DeformableEncoder,
        proposals: Proposals,
        decoder: Decoder,
        heads: Heads,
        hidden_dim: int,
        levels: int,
        query_groups: QueryGroups | None = None,
        normalisation: PixelNormalisation | None = None,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.backbone = backbone
        self.neck = neck
        self.level_embedding = nn.Parameter(torch.empty(levels, hidden_dim))
        self.encoder = encoder
        self.proposals = proposals
        self.decoder = decoder
        self.heads = heads
        self.query_groups = query_groups or QueryGroups()

    @property
    def num_classes(self) -> int:
        """K, the width of the class heads."""
        return self.class_layer(0).out_features

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.decoder.layers)

    def inference_state(self) -> dict[str, Tensor]:
        """Return the state dict without the query groups, which only training reads."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(TRAINING_ONLY)}

    def ffn(self, layer: int) -> FeedForward:
        """Return the feed-forward network of decoder layer ``layer``."""
        decoder_layer = self.decoder.layers[layer]
        assert isinstance(decoder_layer, DecoderLayer)
        return decoder_layer.ffn

    def class_layer(self, layer: int) -> nn.Linear:
        """Return the class layer of decoder layer ``layer``."""
        found = self.heads.classes[layer]
        assert isinstance(found, nn.Linear)
        return found

    def class_layers(self) -> list[nn.Linear]:
        """Return the class layers of all decoder layers."""
        return [self.class_layer(layer) for layer in range(self.num_layers)]

    def predict(
        self, layer: int, hidden: Tensor, reference: Tensor, classes: Callable[[Tensor], Tensor] | None = None
    ) -> Prediction:
        """Apply the heads of a decoder layer; arguments as for ``Heads.predict``."""
        return self.heads.predict(layer, hidden, reference, classes)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Detect objects in a padded batch.

        Args:
            images: the batch.
            targets: read by denoising queries, in training only.
        """
        pixels = images.pixels if self.normalisation is None else self.normalisation(images)
        levels = self.neck(self.backbone(pixels))
        return self.decode(flatten_levels(levels, images.padding, self.level_embedding), targets)

    def decode(self, tokens: Tokens, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Run everything after the neck; query groups in training only."""
        memory = self.encoder(tokens)
        described = self.proposals.describe(memory, tokens)
        proposed = self.proposals.propose(described, self.heads.classes[-1], self.heads.boxes[-1])
        encoder, queries = self.proposals(proposed)

        def run(queries: InitialQueries, how: DecoderPass) -> tuple[DecoderLayerOutput, ...]:
            return self.decoder(queries, memory, tokens, self.heads, how)

        if not self.training:
            return DetectorOutput(run(queries, INFERENCE), encoder, queries.reference, memory)
        decoded = self.query_groups(queries, self.proposals, described, proposed, run, targets)
        return DetectorOutput(decoded.layers, encoder, queries.reference, memory, decoded.groups)
