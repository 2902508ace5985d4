"""What every folder of ``transformers`` that is written here has: config, weights, and the image processor's file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lora_detr.atomic_files import reporting, write_file
from lora_detr.checkpoints.huggingface.classes import write_classes
from lora_detr.errors import OutputError
from lora_detr.json_value import JSON, json_text
from lora_detr.models.huggingface.processor import FILE, Preparation, processor_file
from lora_detr.recipe.deployment import DeploymentConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def write_model(
    folder: Path, named: Path, model: Any, deployment: DeploymentConfig, kept: Mapping[str, JSON] | None = None
) -> None:
    """Write a model with its classes, and what prepares images for it.

    Args:
        folder: where to.
        named: the folder in messages.
        model: of ``transformers``; its config gets the classes.
        deployment: of the detector.
        kept: content of the image processor's file that its training started from.

    Raises:
        OutputError: something cannot be written.
    """
    write_classes(model.config, deployment.categories)
    with reporting(named):
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # what it makes of a full disk
            raise OutputError(f"{named}: cannot be written: {error}", "free some space, or use another disk") from error
        # The file of weights is its owner's alone otherwise.
        os.chmod(folder / WEIGHTS, (folder / CONFIG).stat().st_mode)
    write_processor(folder, deployment, str(model.config.model_type), kept)


def write_processor(
    folder: Path, deployment: DeploymentConfig, model_type: str, kept: Mapping[str, JSON] | None = None
) -> None:
    """Write what makes ``AutoImageProcessor`` prepare images as a detector is given them here.

    Args:
        folder: exists.
        deployment: of the detector.
        model_type: of the detector, for ``transformers``.
        kept: content of the file that its training started from.

    Raises:
        OutputError: the file cannot be written.
    """
    how = deployment.transform
    divisor, mean, std = deployment.size_divisor, deployment.mean, deployment.std
    preparation = Preparation(how.size, how.max_size, how.square, divisor, mean, std)
    content = processor_file(kept or {}, model_type, preparation)
    write_file(folder / FILE, (json_text(content, indent=1) + "\n").encode())
