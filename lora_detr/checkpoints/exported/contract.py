"""What an exported file states about its input and its output, in metadata that any program can read.

Every value is JSON under a key of its own; what is read back here is nothing but these keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from lora_detr.config.explain import first_fault
from lora_detr.data.transforms import AsStored, Transform
from lora_detr.errors import CheckpointError
from lora_detr.recipe.preparation import Preparation

Precision = Literal["fp32", "fp16", "int8"]
Sampler = Literal["grid", "gather"]
Input = Literal["float32 [N,3,H,W] RGB in [0,1]", "uint8 [1,H,W,3] RGB"]
UNIT: Input = "float32 [N,3,H,W] RGB in [0,1]"
STORED: Input = "uint8 [1,H,W,3] RGB"

# What other programs look for by itself, and here is part of one setting.
_OF_TRANSFORM = ("size", "max_size", "square", "rule")
_NAMES = "names"


class Contract(Preparation):
    """Everything that whoever runs an exported file must know."""

    format_version: Literal[1] = 1
    """Of this metadata."""
    loradetr_version: str
    """That wrote the file."""
    weights_sha256: str
    """Of the weights that were exported, before any change of precision."""
    input: Input
    """Of ``images``. Pixels in [0, 1] are prepared by the caller and normalised by the graph; stored pixels are resized
    by the graph as well."""
    image_sizes: bool
    """Whether there is an input of this name: int64 [N, 2], (width, height) of each image within a padded input."""
    outputs: Literal["labels, boxes, scores", "logits, boxes"]
    """The best detections, boxes xyxy in pixels of the stored image; or of every query, boxes cxcywh in [0, 1]."""
    labels: Literal["index"] = "index"
    """What a label is: a place in ``names`` and ``category_ids``, first 0."""
    score_type: Literal["sigmoid"] = "sigmoid"
    """What makes a score of a logit."""
    interpolation: Literal["bilinear"] = "bilinear"
    """How images are resized."""
    antialias: Literal[True] = True
    """Whether shrinking averages all pixels."""
    height: int | None = Field(ge=1)
    """Of the input; null for any."""
    width: int | None = Field(ge=1)
    """Of the input; null for any."""
    batch: int | None = Field(ge=1)
    """Images of a forward pass; null for any number."""
    opset: int
    """Version of the operators."""
    precision: Precision
    """Of convolutions and matrix products."""
    sampler: Sampler
    """What samples features: the operator GridSample, or Gather with arithmetic."""

    @property
    def further_inputs(self) -> dict[str, str]:
        """What the inputs beside ``images`` are, by name."""
        meanings = {"image_sizes": "int64 [N,2], width and height within the padded input"} if self.image_sizes else {}
        if self.input == UNIT and self.outputs.startswith("labels"):
            meanings["orig_target_sizes"] = "int64 [N,2], width and height of the stored image"
        return meanings

    def build_transform(self) -> Transform:
        """Return what prepares an image for the graph: nothing where the graph resizes by itself."""
        return AsStored() if self.input == STORED else super().build_transform()

    def to_metadata(self) -> dict[str, str]:
        """Return it as text by key."""
        values: dict[str, Any] = self.model_dump(mode="json")
        values |= values.pop("transform")
        values[_NAMES] = values.pop("category_names")
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: it is missing, or cannot be used.
        """
        if "loradetr_version" not in metadata:
            raise CheckpointError(
                f"{path}: has no metadata of 'loradetr export', without which images cannot be prepared for it",
                "give a file that 'loradetr export' wrote",
            )
        values: dict[str, Any] = {}
        try:
            values = {key: json.loads(text) for key, text in metadata.items()}
            values["transform"] = {key: values.pop(key) for key in _OF_TRANSFORM}
            values["category_names"] = values.pop(_NAMES)
            return cls.model_validate_json(json.dumps(values))
        except (KeyError, RecursionError, ValueError) as error:
            fault = first_fault(error, values) if isinstance(error, ValidationError) else f"{type(error).__name__}"
            raise CheckpointError(
                f"{path}: its metadata cannot be used: {fault}", "export it again, or use the version that wrote it"
            ) from error
