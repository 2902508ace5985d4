"""Deformable-DETR and Deformable-DETR++: one class, two settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_detr.config.base import Strict
from lora_detr.models.backbones import BackboneConfig, ResNetConfig
from lora_detr.models.decoder import DeformableDecoder
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.neck import Neck
from lora_detr.models.proposals import Proposals

# Floor inside the inverse sigmoid of references, as in the Deformable family.
INVERSE_SIGMOID_EPS = 1e-5


class DeformableDetrConfig(Strict):
    """Two-stage Deformable-DETR with iterative box refinement (Zhu et al., 2021)."""

    kind: Literal["deformable"] = "deformable"
    backbone: BackboneConfig = ResNetConfig()
    """Where features come from."""
    num_queries: int = Field(300, ge=1)
    """Q, object queries, each the start of one possible detection."""
    hidden_dim: int = Field(256, ge=32, multiple_of=32)
    """D, width of the transformer; a multiple of 32 (GroupNorm) and of ``heads``."""
    ffn_dim: int = Field(2048, ge=1)
    """F, width of the feed-forward networks."""
    encoder_layers: int = Field(6, ge=1)
    """Number of encoder layers."""
    decoder_layers: int = Field(6, ge=1)
    """L, number of decoder layers."""
    heads: int = Field(8, ge=1)
    """Attention heads."""
    levels: int = Field(4, ge=1)
    """Feature levels; those beyond the backbone's maps are made by stride-2 convolutions."""
    points: int = Field(4, ge=1)
    """Points that a head samples on each level."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of all transformer blocks."""
    mixed_selection: bool = False
    """Content of queries from a learned table (++)."""
    look_forward_twice: bool = False
    """Boxes also train the box head of the layer before (++)."""

    def build(self, num_classes: int, load_weights: bool) -> TwoStageDetector:
        """Build and initialise the detector.

        Args:
            num_classes: K.
            load_weights: read the backbone's pretrained weights; false when a checkpoint follows.

        Raises:
            CheckpointError: the backbone's weights cannot be fetched, read or fitted.
            ConfigError: the backbone does not exist.
        """
        backbone = self.backbone.build(load_weights)
        blocks = (self.hidden_dim, self.ffn_dim, self.heads, self.levels, self.points, self.dropout)
        detector = TwoStageDetector(
            backbone=backbone,
            neck=Neck(backbone.channels, self.hidden_dim, self.levels),
            encoder=DeformableEncoder(self.encoder_layers, *blocks),
            proposals=Proposals(self.hidden_dim, self.num_queries, self.mixed_selection),
            decoder=DeformableDecoder(self.decoder_layers, *blocks, look_forward_twice=self.look_forward_twice),
            heads=Heads(self.decoder_layers + 1, self.hidden_dim, num_classes, INVERSE_SIGMOID_EPS),
            hidden_dim=self.hidden_dim,
            levels=self.levels,
        )
        detector.initialise()
        return detector
