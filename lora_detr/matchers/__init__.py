"""Label assignment: which query is trained on which target."""

from __future__ import annotations

from lora_detr.matchers.hungarian import Hungarian, HungarianConfig
from lora_detr.matchers.topk import TopK, TopKConfig

# What a branch may be matched by. One member so far; the next makes this a union discriminated by ``kind``.
MatcherConfig = TopKConfig

__all__ = ["Hungarian", "HungarianConfig", "MatcherConfig", "TopK", "TopKConfig"]
