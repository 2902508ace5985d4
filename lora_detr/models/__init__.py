"""Detectors: the closed list of what can be built."""

from __future__ import annotations

from lora_detr.models.deformable_detr import DeformableDetrConfig
from lora_detr.models.detector import TwoStageDetector

# One member so far; the next one makes this a union discriminated by ``kind``.
DetectorConfig = DeformableDetrConfig

__all__ = ["DeformableDetrConfig", "DetectorConfig", "TwoStageDetector"]
