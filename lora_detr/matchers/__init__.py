"""Label assignment: which query is trained on which target."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_detr.matchers.hungarian import Hungarian, HungarianConfig
from lora_detr.matchers.max_iou import MaxIoUConfig
from lora_detr.matchers.topk import TopK, TopKConfig

# What a branch may be matched by.
MatcherConfig = Annotated[TopKConfig | MaxIoUConfig, Field(discriminator="kind")]

__all__ = ["Hungarian", "HungarianConfig", "MatcherConfig", "TopK", "TopKConfig"]
