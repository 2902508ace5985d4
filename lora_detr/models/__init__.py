"""Detectors: the closed list of what can be built."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_detr.models.deformable_detr import DeformableDetrConfig, MsDetrConfig
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.huggingface import HuggingFaceConfig, HuggingFaceDetector
from lora_detr.models.relation_detr import RelationDetrConfig

DetectorConfig = Annotated[
    DeformableDetrConfig | MsDetrConfig | RelationDetrConfig | HuggingFaceConfig,
    Field(discriminator="kind"),
]

AnyDetector = TwoStageDetector | HuggingFaceDetector
"""What a ``DetectorConfig`` builds."""

__all__ = [
    "AnyDetector",
    "DeformableDetrConfig",
    "DetectorConfig",
    "HuggingFaceConfig",
    "HuggingFaceDetector",
    "MsDetrConfig",
    "RelationDetrConfig",
    "TwoStageDetector",
]
