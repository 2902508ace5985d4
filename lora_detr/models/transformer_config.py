"""Settings that all detectors of the family share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from lora_detr.config.base import Strict
from lora_detr.config.statistics import Mean, Std
from lora_detr.models.backbones import BackboneConfig, ResNetConfig
from lora_detr.models.denoising import MAX_QUERIES
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.models.query_groups import HybridConfig
from lora_detr.structures import Backbone

# Upper bounds of sizes are far beyond any detector that is of use. They keep a file whose settings were forged from
# costing more than its tensors do.
MAX_LAYERS = 32


class TransformerConfig(Strict):
    """Sizes of a two-stage deformable detector, and its query groups."""

    kind: str
    backbone: BackboneConfig = ResNetConfig()
    """Where features come from."""
    num_queries: int = Field(300, ge=1, le=MAX_QUERIES)
    """Q, object queries, each the start of one possible detection."""
    hidden_dim: int = Field(256, ge=32, le=8192, multiple_of=32)
    """D, width of the transformer; a multiple of 32 (GroupNorm) and of ``heads``."""
    ffn_dim: int = Field(2048, ge=1, le=65_536)
    """F, width of the feed-forward networks."""
    encoder_layers: int = Field(6, ge=1, le=MAX_LAYERS)
    """Number of encoder layers."""
    decoder_layers: int = Field(6, ge=1, le=MAX_LAYERS)
    """L, number of decoder layers."""
    heads: int = Field(8, ge=1, le=256)
    """Attention heads."""
    levels: int = Field(4, ge=1, le=16)
    """Feature levels; those beyond the backbone's maps are made by stride-2 convolutions."""
    points: int = Field(4, ge=1, le=64)
    """Points that a head samples on each level."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of all transformer blocks."""
    hybrid: HybridConfig | None = None
    """Further queries in training for repeated targets (H-DETR); null for none."""
    dac: bool = False
    """Decode a second time in training without self-attention, for one-to-many supervision (DAC-DETR)."""

    @model_validator(mode="after")
    def _check_sizes_fit(self) -> Self:
        maps = self.backbone.num_maps
        if self.levels < maps:
            raise ValueError(
                f"`model.levels` is {self.levels} but `model.backbone` gives {maps} feature maps; "
                "raise the levels or list fewer strides"
            )
        if self.hidden_dim % self.heads:
            raise ValueError(f"`model.hidden_dim` is {self.hidden_dim}, not a multiple of `model.heads` {self.heads}")
        return self

    def build(self, num_classes: int, load_weights: bool) -> TwoStageDetector:
        """Build and initialise the detector.

        Args:
            num_classes: K.
            load_weights: read the backbone's pretrained weights; false when a checkpoint follows.

        Raises:
            CheckpointError: the backbone's weights cannot be fetched, read or fitted.
            ConfigError: the backbone does not exist, or its pixels cannot be normalised.
        """
        normalisation = PixelNormalisation(*self.backbone.input_statistics)
        detector = self._compose(normalisation, self.backbone.build(load_weights), num_classes)
        self._initialise(detector)
        return detector

    @abstractmethod
    def _compose(self, normalisation: PixelNormalisation, backbone: Backbone, num_classes: int) -> TwoStageDetector:
        """Return the detector of these parts; their order is that of the random draws they start from."""

    @abstractmethod
    def _initialise(self, detector: TwoStageDetector) -> None:
        """Give everything but the backbone its start, in place."""

    @property
    def block_sizes(self) -> BlockSizes:
        """Sizes of the layers of encoder and decoder."""
        return BlockSizes(self.hidden_dim, self.ffn_dim, self.heads, self.levels, self.points, self.dropout)

    @property
    def has_denoising(self) -> bool:
        """Whether noised targets are queries in training."""
        return False

    def describe(self, weights: str = "") -> str:
        """Return kind, backbone and sizes in words; ``weights`` stands behind the backbone's name."""
        return (
            f"{self.kind}, {self.backbone.name}{weights}, {self.encoder_layers} + {self.decoder_layers} layers, "
            f"{self.num_queries} queries"
        )

    @property
    def queries_key(self) -> str:
        """Key path of the number of queries."""
        return "model.num_queries"

    @property
    def input_statistics(self) -> tuple[Mean, Std]:
        """Mean and standard deviation of the pixels that the backbone takes."""
        return self.backbone.input_statistics

    def resolved(self, batch_size: int) -> Self:
        """Replace what depends on this machine by what was found; batches of any size are trained alike."""
        return self.model_copy(update={"backbone": self.backbone.resolved()})

    def for_inference(self) -> Self:
        """Return the config of the same detector without anything that only training has, weights to load included."""
        return self.model_copy(update={"hybrid": None, "dac": False, "backbone": self.backbone.without_weights()})
