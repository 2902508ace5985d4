"""Our own two-stage Deformable-DETR from a folder of ``transformers``, and as one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_detr.atomic_files import TEMPORARY, prepare_directory, private_directory, reporting
from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.huggingface.classes import categories_of
from lora_detr.checkpoints.huggingface.keys import to_ours, to_theirs
from lora_detr.checkpoints.huggingface.system import config_of, settings_of
from lora_detr.checkpoints.huggingface.writing import write_model
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.models import AnyDetector
from lora_detr.models.huggingface.pretrained import read_pretrained, read_weights
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.tensor_files import build_exact


@dataclass(frozen=True)
class HuggingFaceFolder:
    """What a folder, or a name on the hub, holds.

    Attributes:
        source: which.
        config: of a run with such a detector, without branches.
        categories: its labels.
        model: with the weights, in evaluation mode.
        tensors: number of tensors of the model in ``transformers``, heads under both names.
        unused: names of further tensors, which that model has no place for.
        notes: what was chosen, a line each.
    """

    source: str
    config: RunConfig
    categories: CategoryMap
    model: BranchedDetector[AnyDetector]
    tensors: int
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(source: str, data: Path | None = None) -> HuggingFaceFolder:
    """Read a two-stage Deformable-DETR of ``transformers``.

    Args:
        source: folder, or name on the hub.
        data: data set that it was trained on, for the ids of its classes.

    Raises:
        CheckpointError: it cannot be read, is no such detector, or has classes that the data set has not.
        ConfigError: ``transformers`` is missing, or knows no such detector.
        LoraDetrError: the data cannot be read.
    """
    published = read_pretrained(source)
    categories, described = categories_of(published, data)
    settings = settings_of(published, categories, data)
    weights = read_weights(source)
    theirs = {name.removeprefix("model."): tensor for name, tensor in weights.tensors.items()}
    tensors = {f"detector.{name}": tensor for name, tensor in to_ours(theirs).items()}
    build = partial(settings.build_model, categories.num_classes, load_weights=False)
    chosen = published.preparation.note
    notes = (f"classes: {categories.num_classes}, {described}", *([chosen] if chosen else []))
    model = build_exact(build, tensors, Path(source)).eval()
    return HuggingFaceFolder(source, settings, categories, model, len(theirs), weights.unused, notes)


def write_folder(path: Path, tensors: Mapping[str, Tensor], deployment: DeploymentConfig, source: Path) -> int:
    """Write what ``AutoModelForObjectDetection.from_pretrained`` and ``AutoImageProcessor`` read, atomically.

    Args:
        path: of the folder, which does not exist.
        tensors: of a ``TwoStageDetector`` without query groups.
        deployment: what it is.
        source: where it comes from, for messages.

    Returns:
        Number of tensors of the model in ``transformers``, heads under both names.

    Raises:
        CheckpointError: K08, ``transformers`` has no such detector.
        ImportError: ``transformers`` is missing; see ``require_transformers``.
        OutputError: the folder cannot be written.
    """
    transformers: Any = importlib.import_module("transformers")
    config = config_of(deployment, source)
    prepare_directory(path.parent, sum(tensor.nbytes for tensor in tensors.values()))
    model = transformers.AutoModelForObjectDetection.from_config(config)
    named = to_theirs(tensors)
    model.load_state_dict(named)
    with reporting(path), private_directory(path.parent, TEMPORARY) as temporary:
        folder = temporary / path.name
        write_model(folder, path, model, deployment)
        os.rename(folder, path)
    return len(named)
