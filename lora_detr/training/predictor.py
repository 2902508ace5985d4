"""Open a run, a checkpoint, an official file or a stripped file for predicting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lora_detr.checkpoints.opened import open_run, open_stripped
from lora_detr.evaluation.predictor import Predictor
from lora_detr.processes.world import choose_device


def open_predictor(model: Path, which: Literal["best", "last"], *, device: str, ema: bool = True) -> Predictor:
    """Open what a user names as a model. Branches are left behind; of a run, the primary path predicts.

    Args:
        model: run directory, checkpoint directory, official file or stripped file.
        which: checkpoint of a run directory; unused otherwise.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the best there is.
        ema: take the averaged weights where a checkpoint has them.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        ConfigError: the device is unknown or not there.
    """
    # A device alone, no `World`: whoever predicts may be one process of another program.
    chosen = choose_device(device)
    stripped = open_stripped(model)
    if stripped is not None:
        return Predictor(*stripped, chosen)
    run = open_run(model, which, ema=ema)
    return Predictor(run.model.detector, run.deployment, chosen)
