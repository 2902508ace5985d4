"""Detectors: the closed list of what can be built."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_detr.models.deformable_detr import DeformableDetrConfig, MsDetrConfig
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.relation_detr import RelationDetrConfig

DetectorConfig = Annotated[
    DeformableDetrConfig | MsDetrConfig | RelationDetrConfig,
    Field(discriminator="kind"),
]

__all__ = ["DeformableDetrConfig", "DetectorConfig", "MsDetrConfig", "RelationDetrConfig", "TwoStageDetector"]
