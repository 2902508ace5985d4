"""The members of the closed unions of config types, so that a new member is tested as soon as it exists."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from lora_detr.models import DetectorConfig, HuggingFaceConfig


def members(union: Any) -> list[Any]:
    """Return the config classes of a union, annotated or not, or of the single class that stands for one."""
    origin = get_origin(union)
    if origin is Annotated:
        return members(get_args(union)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(union) for member in members(part)]
    return [union]


def tiny_detector(kind: Any, **changes: Any) -> Any:
    """Return a config of the detector class ``kind`` that builds and runs in milliseconds."""
    settings: dict[str, Any] = {
        "backbone": {"kind": "timm", "name": "test_efficientnet", "strides": (16, 32), "weights": "none"},
        "num_queries": 7,
        "hidden_dim": 32,
        "ffn_dim": 64,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "heads": 4,
        "levels": 3,
        "points": 2,
        "dropout": 0.1,
    }
    return kind.model_validate(settings | changes)


# Those of `transformers` are built by transformers, and kept to the same contracts in tests/unit/models/huggingface.
DETECTORS = [kind for kind in members(DetectorConfig) if kind is not HuggingFaceConfig]
