"""Open what a user names as a model: a run, a checkpoint, or a stripped file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lora_detr.branches import BranchedDetector
from lora_detr.config.run import RunConfig
from lora_detr.data.categories import CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.evaluation.deployed import DeploymentConfig, is_deployed, read_deployed
from lora_detr.exact_weights import load_exact
from lora_detr.models import TwoStageDetector
from lora_detr.training.checkpoint import LoadedCheckpoint, load_checkpoint, resolve_checkpoint


@dataclass(frozen=True)
class OpenedRun:
    """A checkpoint with its model, branches included.

    Attributes:
        path: folder of the checkpoint.
        config: of the run.
        categories: labels of the model.
        model: in evaluation mode, on the CPU.
        checkpoint: what was read.
        averaged: whether the model has the averaged weights of the checkpoint (EMA).
    """

    path: Path
    config: RunConfig
    categories: CategoryMap
    model: BranchedDetector[TwoStageDetector]
    checkpoint: LoadedCheckpoint
    averaged: bool = False

    @property
    def run(self) -> Path:
        """The run directory, or the folder beside a checkpoint that stands alone."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    @property
    def deployment(self) -> DeploymentConfig:
        """What inference needs to know."""
        return self.config.deployment(self.categories)


def open_run(
    model: Path, which: Literal["best", "last"] = "best", *, ema: bool = True, with_optimizer: bool = False
) -> OpenedRun:
    """Open a run or checkpoint directory.

    Args:
        model: either of them.
        which: checkpoint of a run directory.
        ema: take the averaged weights where the checkpoint has them.
        with_optimizer: read the state of the optimiser too.

    Raises:
        CheckpointError: there is none, it is damaged, or it does not fit its own config.
    """
    path = resolve_checkpoint(model, which)
    checkpoint = load_checkpoint(path, with_optimizer=with_optimizer)
    config = stored_config(checkpoint, path)
    categories = CategoryMap.from_json(checkpoint.state.get("categories"))
    built = config.build_model(categories.num_classes, load_weights=False)
    averaged = checkpoint.ema if ema else None
    load_exact(built, checkpoint.model if averaged is None else averaged, path)
    return OpenedRun(path, config, categories, built.eval(), checkpoint, averaged is not None)


def stored_config(checkpoint: LoadedCheckpoint, path: Path) -> RunConfig:
    """Return the config that a checkpoint was trained with.

    Raises:
        CheckpointError: it is missing or of another schema.
    """
    try:
        return RunConfig.model_validate(checkpoint.state.get("config"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: its stored config cannot be used: {place}: {first['msg']}", "use the version that wrote it"
        ) from error


def open_stripped(path: Path) -> tuple[TwoStageDetector, DeploymentConfig] | None:
    """Return a stripped file's detector and config; None when ``path`` is no such file."""
    if not is_deployed(path):
        return None
    deployed = read_deployed(path)
    return deployed.detector, deployed.config
