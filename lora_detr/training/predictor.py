"""Open a run, a checkpoint or a stripped file for predicting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from lora_detr.errors import ConfigError, nearest
from lora_detr.evaluation.predictor import Predictor
from lora_detr.training.opened import open_run, open_stripped

KINDS = ("auto", "cpu", "cuda")


def open_predictor(model: Path, which: Literal["best", "last"], *, device: str, ema: bool = True) -> Predictor:
    """Open what a user names as a model. Branches are left behind; of a run, the primary path predicts.

    Args:
        model: run directory, checkpoint directory or stripped file.
        which: checkpoint of a run directory; unused otherwise.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the best there is.
        ema: take the averaged weights where a checkpoint has them.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        ConfigError: the device is unknown or not there.
    """
    chosen = _device(device)
    stripped = open_stripped(model)
    if stripped is not None:
        return Predictor(*stripped, chosen)
    run = open_run(model, which, ema=ema)
    return Predictor(run.model.detector, run.deployment, chosen)


def _device(name: str) -> torch.device:
    """Return the device. Unlike a ``World`` it joins no group: whoever predicts may be a process of another program."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in KINDS[1:] or (number and not number.isdecimal()) or name.endswith(":"):
        raise ConfigError(f"device {name}: unknown{nearest(name, KINDS)}", f"known: {', '.join(KINDS)}, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise ConfigError(f"device {name}: PyTorch sees {count} CUDA devices", "use cpu, or install a CUDA build")
    return torch.device(name)
