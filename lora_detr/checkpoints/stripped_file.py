"""What inference needs and nothing else: a detector without branches, its input and its classes, in one file.

This module and all it imports know nothing of branches; the proof of ``strip`` loads a stripped file through it in a
process of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from lora_detr.config.explain import first_fault
from lora_detr.config.installed import installed_version
from lora_detr.errors import CheckpointError
from lora_detr.json_value import JSON
from lora_detr.models import AnyDetector
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.tensor_files import build_exact, read_tensors, write_tensors

FORMAT = "lora-detr stripped"
FORMAT_VERSION = 3
HASH = "sha256"


@dataclass(frozen=True)
class StrippedFile:
    """A detector that is ready to predict.

    Attributes:
        detector: in evaluation mode.
        deployment: its input and classes.
    """

    detector: AnyDetector
    deployment: DeploymentConfig


def write_stripped(path: Path, tensors: Mapping[str, Tensor], config: DeploymentConfig) -> None:
    """Write weights and config as one safetensors file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "lora_detr_version": installed_version("lora-detr") or "not installed",  # but on the path
        # A key that older versions do not know is left out where it says nothing.
        "config": config.model_dump_json(exclude={"operating_point"} if config.operating_point is None else None),
    }
    write_tensors(path, dict(tensors), {**metadata, HASH: _digest(tensors, metadata)})


def read_stripped(path: Path) -> StrippedFile:
    """Read a stripped file; its tensors must be exactly those of the detector it describes.

    Raises:
        CheckpointError: not a stripped file, of another version, or damaged.
    """
    tensors, config = read_file(path)
    return StrippedFile(build_exact(config.build, tensors, path).eval(), config)


def read_file(path: Path) -> tuple[dict[str, Tensor], DeploymentConfig]:
    """Return the weights and the config of a stripped file, without building its detector.

    Raises:
        CheckpointError: not a stripped file, of another version, or damaged.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a stripped detector: not written by 'loradetr strip'",
            f"give its folder, {path.parent}"
            if (path.parent / "config.json").is_file()
            else "give a run directory, a checkpoint directory, or a file written by 'loradetr strip'",
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        older = version.isdecimal() and int(version) < FORMAT_VERSION
        raise CheckpointError(
            f"{path}: format version {version!r}, this program reads {FORMAT_VERSION}",
            "strip the run again" if older else "install a newer lora-detr",
        )
    if metadata.pop(HASH, None) != _digest(tensors, metadata):
        raise CheckpointError(
            f"{path}: damaged: its contents do not match the hash it was written with",
            "use another copy, or strip the run again",
            code="K02",
        )
    text = metadata.get("config", "")
    try:
        return tensors, DeploymentConfig.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its stored config cannot be used: {first_fault(error, _parsed(text))}",
            "install the version that wrote it, or strip the run again",
        ) from error


def _parsed(text: str) -> JSON:
    try:
        value: JSON = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return value


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the metadata and of all tensors, by name."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
