"""Deformable-DETR and ++, one class with two settings; and MS-DETR, which orders its attentions otherwise."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from lora_detr.models.decoder import DeformableDecoder, Order
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.layers.attention import DeformableAttention
from lora_detr.models.neck import Neck
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.models.proposals import Proposals
from lora_detr.models.query_groups import HybridQueries, QueryGroups
from lora_detr.models.transformer_config import TransformerConfig
from lora_detr.structures import Backbone

# Floor inside the inverse sigmoid of references, as in the Deformable family.
INVERSE_SIGMOID_EPS = 1e-5


class DeformableFamilyConfig(TransformerConfig):
    """What Deformable-DETR and its direct descendants share."""

    order: ClassVar[Order] = "self-first"

    mixed_selection: bool = False
    """Content of queries from a learned table (++)."""
    look_forward_twice: bool = False
    """Boxes also train the box head of the layer before (++)."""

    def _compose(self, normalisation: PixelNormalisation, backbone: Backbone, num_classes: int) -> TwoStageDetector:
        return TwoStageDetector(
            backbone=backbone,
            neck=Neck(backbone.channels, self.hidden_dim, self.levels),
            encoder=DeformableEncoder(self.encoder_layers, self.block_sizes),
            proposals=Proposals(self.hidden_dim, self.num_queries, self.mixed_selection),
            decoder=DeformableDecoder(
                self.decoder_layers, self.block_sizes, look_forward_twice=self.look_forward_twice, order=self.order
            ),
            heads=Heads(self.decoder_layers + 1, self.hidden_dim, num_classes, INVERSE_SIGMOID_EPS),
            hidden_dim=self.hidden_dim,
            levels=self.levels,
            query_groups=self._query_groups(),
            normalisation=normalisation,
        )

    def _initialise(self, detector: TwoStageDetector) -> None:
        initialise(detector)

    def _query_groups(self) -> QueryGroups:
        if self.hybrid is None:
            return QueryGroups(dac=self.dac)
        hybrid = HybridQueries(self.hidden_dim, self.hybrid.num_queries, self.mixed_selection, None)
        return QueryGroups(hybrid=hybrid, dac=self.dac)


class DeformableDetrConfig(DeformableFamilyConfig):
    """Two-stage Deformable-DETR with iterative box refinement (Zhu et al., 2021)."""

    kind: Literal["deformable"] = "deformable"


class MsDetrConfig(DeformableFamilyConfig):
    """Deformable-DETR with cross-attention before self-attention (MS-DETR, Zhao et al., 2024; paper, Figure 1b)."""

    order: ClassVar[Order] = "cross-first"

    kind: Literal["ms-detr"] = "ms-detr"


def initialise(detector: TwoStageDetector) -> None:
    """Initialise everything but the backbone, as the Deformable family does.

    Each weight of the transformer with more than one axis is Xavier-uniform (a packed attention projection
    counts as one matrix), deformable attention and heads have their own start, biases keep PyTorch's.
    """
    for part in (detector.encoder, detector.proposals, detector.decoder):
        assert isinstance(part, nn.Module)
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            module.initialise()
    hybrid = detector.query_groups.hybrid
    for table in (detector.proposals.content, None if hybrid is None else hybrid.content):
        if table is not None:
            nn.init.normal_(table.weight)
    nn.init.normal_(detector.level_embedding)
    detector.neck.initialise()
    detector.heads.initialise()
