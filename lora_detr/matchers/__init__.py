"""Label assignment: which query is trained on which target."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from lora_detr.config.installed import or_installed
from lora_detr.matchers.atss import ATSSConfig
from lora_detr.matchers.hungarian import Hungarian, HungarianConfig
from lora_detr.matchers.hungarian_repeat import HungarianRepeatConfig
from lora_detr.matchers.many_to_one import ManyToOneConfig
from lora_detr.matchers.max_iou import MaxIoUConfig
from lora_detr.matchers.one_to_many import OneToManyConfig
from lora_detr.matchers.simota import SimOTAConfig
from lora_detr.matchers.task_aligned import TaskAlignedConfig
from lora_detr.matchers.topk import TopK, TopKConfig

MATCHER_GROUP = "lora_detr.matchers"
"""Entry points by which installed packages offer matchers."""

# What a branch may be matched by.
MatcherConfig = Annotated[
    SerializeAsAny[
        Annotated[
            TopKConfig
            | MaxIoUConfig
            | ATSSConfig
            | SimOTAConfig
            | TaskAlignedConfig
            | HungarianRepeatConfig
            | ManyToOneConfig,
            Field(discriminator="kind"),
        ]
    ],
    or_installed(MATCHER_GROUP, OneToManyConfig, default="topk"),
]

__all__ = ["MATCHER_GROUP", "Hungarian", "HungarianConfig", "MatcherConfig", "OneToManyConfig", "TopK", "TopKConfig"]
