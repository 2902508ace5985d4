"""The image processor's file of a folder that is written here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_detr.atomic_files import write_file
from lora_detr.json_value import JSON, json_text
from lora_detr.models.huggingface.processor import FILE, Preparation, processor_file
from lora_detr.recipe.deployment import DeploymentConfig


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
