"""Relation-DETR (Hou et al., 2024): position relation, encoder fusion, denoising and hybrid queries."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field
from torch import nn

from lora_detr.models.denoising import MAX_QUERIES, DenoisingConfig, DenoisingQueries
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import BoxHead, Heads, start_rare
from lora_detr.models.layers.attention import DeformableAttention, SelfAttentionBlock
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.models.neck import Neck
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.models.proposals import Proposals
from lora_detr.models.query_groups import HybridConfig, HybridQueries, QueryGroups
from lora_detr.models.relation_decoder import RelationDecoder, TwoLayers
from lora_detr.models.transformer_config import MAX_LAYERS, TransformerConfig
from lora_detr.structures import Backbone

# Floor inside the inverse sigmoid of references, as in the Relation family.
INVERSE_SIGMOID_EPS = 1e-3


class RelationDetrConfig(TransformerConfig):
    """Two-stage Relation-DETR."""

    kind: Literal["relation"] = "relation"
    num_queries: int = Field(900, ge=1, le=MAX_QUERIES)
    """Q, object queries, each the start of one possible detection."""
    decoder_layers: int = Field(6, ge=2, le=MAX_LAYERS)
    """L, number of decoder layers; the relation of boxes is read from the second on."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of all transformer blocks."""
    hybrid: HybridConfig | None = HybridConfig()
    """Further queries in training for repeated targets, with proposal heads of their own; null for none."""
    denoising: DenoisingConfig | None = DenoisingConfig()
    """Noised targets as queries in training; null for none."""

    @property
    def has_denoising(self) -> bool:
        """Whether noised targets are queries in training."""
        return self.denoising is not None

    def for_inference(self) -> Self:
        """Return the config of the same detector without anything that only training has."""
        return super().for_inference().model_copy(update={"denoising": None})

    def _compose(self, normalisation: PixelNormalisation, backbone: Backbone, num_classes: int) -> TwoStageDetector:
        return TwoStageDetector(
            backbone=backbone,
            neck=Neck(backbone.channels, self.hidden_dim, self.levels, bias=False),
            encoder=DeformableEncoder(self.encoder_layers, self.block_sizes, fusion=True),
            proposals=Proposals(
                self.hidden_dim, self.num_queries, mixed_selection=True, ranking="best-class", encode_boxes=False
            ),
            decoder=RelationDecoder(self.decoder_layers, self.block_sizes),
            heads=Heads(self.decoder_layers + 1, self.hidden_dim, num_classes, INVERSE_SIGMOID_EPS, normalised=True),
            hidden_dim=self.hidden_dim,
            levels=self.levels,
            query_groups=self._query_groups(num_classes),
            normalisation=normalisation,
        )

    def _initialise(self, detector: TwoStageDetector) -> None:
        initialise(detector)

    def _query_groups(self, num_classes: int) -> QueryGroups:
        denoising, hybrid = None, None
        if self.denoising is not None:
            denoising = DenoisingQueries(
                self.hidden_dim,
                num_classes,
                num_queries=self.denoising.num_queries,
                label_noise=self.denoising.label_noise,
                box_noise=self.denoising.box_noise,
                max_targets=self.denoising.max_targets,
                eps=INVERSE_SIGMOID_EPS,
            )
        if self.hybrid is not None:
            hybrid = HybridQueries(self.hidden_dim, self.hybrid.num_queries, table=True, num_classes=num_classes)
        return QueryGroups(denoising, hybrid, self.dac)


def initialise(detector: TwoStageDetector) -> None:
    """Initialise everything but the backbone, as the Relation family does.

    Attention, feed-forward networks, and all that makes positions, boxes and proposals are Xavier-uniform; the fusion
    of the encoder, the position relation and class heads keep PyTorch's start. Heads of decoder layers are copies of
    one pair; those of proposals are draws of their own.
    """
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            module.initialise()
        elif isinstance(module, FeedForward):
            nn.init.xavier_uniform_(module.linear1.weight)
            nn.init.xavier_uniform_(module.linear2.weight)
        elif isinstance(module, SelfAttentionBlock):
            nn.init.xavier_uniform_(module.attention.in_proj_weight)
            nn.init.xavier_uniform_(module.attention.out_proj.weight)
        elif isinstance(module, TwoLayers):
            for layer in module.layers:
                _xavier(layer)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, BoxHead):
            for layer in module.layers:
                _xavier(layer)
            module.start_without_refinement()
    _xavier(detector.proposals.projection)
    nn.init.normal_(detector.level_embedding)
    detector.neck.initialise()
    hybrid = detector.query_groups.hybrid
    class_heads = [*detector.heads.classes, *([] if hybrid is None or hybrid.classes is None else [hybrid.classes])]
    for head in class_heads:
        assert isinstance(head, nn.Linear)
        start_rare(head)
    detector.heads.copy_first(detector.num_layers)


def _xavier(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
