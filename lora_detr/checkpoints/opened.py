"""Classify a path that is given as a model (``kind_of``) and open it (``open_model``, ``open_run``).

All commands ask here, so that none of them has rules of its own. A folder is classified by its contents and a file by
its suffix, since a truncated or damaged file must still be reported as the model file it was meant to be.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.checkpoint import (
    LoadedCheckpoint,
    checkpoints_of,
    has_checkpoints,
    is_checkpoint,
    load_checkpoint,
    resolve_checkpoint,
    run_of,
)
from lora_detr.checkpoints.exported.session import SUFFIX
from lora_detr.checkpoints.huggingface.stripped_folder import is_transformers, read_folder
from lora_detr.checkpoints.manifest import Manifest
from lora_detr.checkpoints.official.file import OfficialFile, read_official
from lora_detr.checkpoints.official.system import OfficialSystem, announce, recognise
from lora_detr.checkpoints.stripped_file import StrippedFile, read_file, read_stripped
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.config.explain import first_fault
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.models import AnyDetector, HuggingFaceConfig
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.tensor_files import build_exact, build_outline

logger = logging.getLogger("lora_detr")


ModelKind = Literal[
    "run", "checkpoint", "official", "stripped", "transformers", "exported", "folder", "file", "missing"
]
"""What a path can be where a model is expected. ``transformers`` is a folder that it reads, or a name behind ``hf:``;
a ``folder`` holds no model, a ``file`` is of no other kind."""

_SUFFIXES: dict[str, ModelKind] = {
    ".pth": "official",
    ".pt": "official",
    ".safetensors": "stripped",
    SUFFIX: "exported",
}


def kind_of(path: Path) -> ModelKind:
    """Return what a path is. No file is opened, so a file or checkpoint may still turn out to be damaged."""
    if is_transformers(path):
        return "transformers"
    if path.is_dir():
        if is_checkpoint(path):
            return "checkpoint"
        return "run" if has_checkpoints(checkpoints_of(path)) else "folder"
    if path.is_file():
        return kind_of_name(path)
    return "file" if path.exists() else "missing"


def kind_of_name(path: Path) -> ModelKind:
    """Return what the suffix makes of a file, existing or still to be written: official, stripped or file."""
    return _SUFFIXES.get(path.suffix, "file")


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint with its model, branches included.

    Attributes:
        path: folder of the checkpoint, or the official file.
        config: of the run.
        categories: labels of the model.
        model: in evaluation mode, on the CPU.
        checkpoint: what was read.
        averaged: whether the model has the averaged weights of the checkpoint (EMA).
    """

    path: Path
    config: RunConfig
    categories: CategoryMap
    model: BranchedDetector[AnyDetector]
    checkpoint: LoadedCheckpoint
    averaged: bool = False

    @property
    def run(self) -> Path:
        """The run directory, or the folder beside a checkpoint that stands alone."""
        return run_of(self.path) or self.path.parent

    @property
    def stripped(self) -> Path:
        """Where the detector without branches is written unless a user says otherwise."""
        if self.path.is_dir():
            is_folder = isinstance(self.config.model, HuggingFaceConfig)
            return self.run / ("stripped" if is_folder else "stripped.safetensors")
        return self.path.with_name(f"{self.path.stem}-stripped.safetensors")

    @property
    def detector(self) -> AnyDetector:
        """The model without its branches."""
        return self.model.detector

    @property
    def deployment(self) -> DeploymentConfig:
        """What inference needs to know, with the operating point that was chosen for these weights, if one was."""
        plain = self.config.deployment(self.categories)
        evaluated = self.averaged or self.checkpoint.ema is None
        metrics = self.checkpoint.state.metrics if evaluated else None
        point = metrics.get("operating_point") if isinstance(metrics, dict) else None
        try:
            return DeploymentConfig.model_validate({**dict(plain), "operating_point": point})
        except ValidationError:  # damaged, or of another version: a model is of use without it
            return plain


def open_model(
    model: Path, which: Literal["best", "last"] = "best", *, ema: bool = True, data: Path | None = None
) -> OpenedRun | StrippedFile:
    """Open any kind of model.

    Args:
        model: run or checkpoint directory, official file or stripped file.
        which: checkpoint of a run directory.
        ema: take the averaged weights where the checkpoint has them.
        data: COCO folder or YAML that names the classes of an official file without names, and has the ids of those of
            a folder for ``transformers`` that has none.

    Raises:
        CheckpointError: as ``open_run``, or a stripped file is damaged.
        LoraDetrError: ``data`` was asked and cannot be read.
    """
    kind = kind_of(model)
    if kind == "stripped":
        return read_stripped(model)
    if kind == "transformers":
        return read_folder(model, data)
    return open_run(model, which, ema=ema, data=data)


def open_run(
    model: Path,
    which: Literal["best", "last"] = "best",
    *,
    ema: bool = True,
    with_optimizer: bool = False,
    data: Path | None = None,
) -> OpenedRun:
    """Open a run or checkpoint directory, or an official file; of the latter, the log says what it was taken for.

    Args:
        model: one of them.
        which: checkpoint of a run directory.
        ema: take the averaged weights where the checkpoint has them.
        with_optimizer: read the state of the optimiser too.
        data: COCO folder or YAML that names the classes of an official file without names.

    Raises:
        CheckpointError: there is none, it is damaged, it does not fit its own config, or it is of no known system;
            K12 for a stripped file, which has no branches any more.
        LoraDetrError: ``data`` was asked and cannot be read.
    """
    kind = kind_of(model)
    if kind == "stripped":
        read_file(model)  # a file that is none of ours has a fault of its own
        raise CheckpointError(
            f"{model}: is a stripped file already", "give the run directory or checkpoint", code="K12"
        )
    if kind == "transformers":
        message = f"{model}: is a detector of transformers, without branches"
        raise CheckpointError(message, "give the run directory or checkpoint", code="K12")
    if kind == "exported":
        message = f"{model}: is an exported file, without anything to train"
        raise CheckpointError(message, "predict and eval take it; give the run directory or checkpoint", code="K12")
    if kind == "official":
        file = read_official(model, ema=ema)
        system = recognise(file, data=data)
        opened = open_official(file, system)
        announce(file, system)
        logger.info("all %d tensors loaded", len(file.tensors))
        return opened
    path = resolve_checkpoint(model, which)
    checkpoint = load_checkpoint(path, with_optimizer=with_optimizer)
    config = stored_config(checkpoint, path)
    categories = stored_categories(checkpoint, path)
    averaged = checkpoint.ema if ema else None
    built = build_exact(
        partial(config.build_model, categories.num_classes, load_weights=False),
        checkpoint.model if averaged is None else averaged,
        path,
    )
    return OpenedRun(path, config, categories, built.eval(), checkpoint, averaged is not None)


def open_official(file: OfficialFile, system: OfficialSystem) -> OpenedRun:
    """Build the model of an official file and load all of it.

    Args:
        file: what was read.
        system: what it is of.

    Raises:
        CheckpointError: K08, a tensor is missing, left over, or of another shape or dtype.
    """
    categories = system.classes.categories
    build = partial(system.config.build_model, categories.num_classes, load_weights=False)
    file.check_fit(build_outline(build, file.path))
    built = build()
    built.load_state_dict(file.weights)
    checkpoint = LoadedCheckpoint(0, file.weights, {}, None, TrainingState(), Manifest(0, {}, {}))
    return OpenedRun(file.path, system.config, categories, built.eval(), checkpoint, file.averaged)


def stored_config(checkpoint: LoadedCheckpoint, path: Path) -> RunConfig:
    """Return the config that a checkpoint was trained with.

    Raises:
        CheckpointError: it is missing or of another schema.
    """
    try:
        return RunConfig.model_validate(checkpoint.state.config)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its stored config cannot be used: {first_fault(error, checkpoint.state.config)}",
            "use the version that wrote it",
        ) from error


def stored_categories(checkpoint: LoadedCheckpoint, path: Path) -> CategoryMap:
    """Return the labels that a checkpoint was trained with.

    Raises:
        CheckpointError: they are missing or malformed.
    """
    try:
        return CategoryMap.from_json(checkpoint.state.categories)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", "use an earlier checkpoint of the run") from error
