"""Backbones: the closed list of what can stand at the start of a detector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_detr.models.backbones.resnet import ResNetConfig
from lora_detr.models.backbones.timm import TimmConfig

BackboneConfig = Annotated[ResNetConfig | TimmConfig, Field(discriminator="kind")]

__all__ = ["BackboneConfig", "ResNetConfig", "TimmConfig"]
