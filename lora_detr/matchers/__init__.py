"""Label assignment: which query is trained on which target."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from lora_detr.config.installed import or_installed
from lora_detr.matchers.hungarian import Hungarian, HungarianConfig
from lora_detr.matchers.max_iou import MaxIoUConfig
from lora_detr.matchers.one_to_many import OneToManyConfig
from lora_detr.matchers.topk import TopK, TopKConfig

# What a branch may be matched by.
MatcherConfig = Annotated[
    SerializeAsAny[Annotated[TopKConfig | MaxIoUConfig, Field(discriminator="kind")]],
    or_installed("lora_detr.matchers", OneToManyConfig, default="topk"),
]

__all__ = ["Hungarian", "HungarianConfig", "MatcherConfig", "OneToManyConfig", "TopK", "TopKConfig"]
