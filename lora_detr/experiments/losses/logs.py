"""The primary path's one-to-one losses over a run, read off its logs: ours, or the ``log.txt`` of DETR's many forks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lora_detr.checkpoints.checkpoint import load_checkpoint, resolve_checkpoint
from lora_detr.checkpoints.opened import stored_config
from lora_detr.config.dump import dump_config
from lora_detr.config.load import load_config
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.experiments.tables.study import RECORD, read_study
from lora_detr.losses.report import KINDS, Kind
from lora_detr.models import HuggingFaceConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.log_reading import Layers, read_epochs, read_steps
from lora_detr.records.run_directory import RunDirectory

logger = logging.getLogger(__name__)

Values = NDArray[np.float64]
Term = tuple[int, Kind]
"""Decoder layer, 0 first, and which loss."""


@dataclass(frozen=True, eq=False)
class LossLog:
    """One-to-one losses of a run, weighted as in its total.

    Attributes:
        label: runs of the same label are seeds of the same thing.
        epochs: [n], rising; a whole number where an epoch ends.
        terms: layer and kind -> losses [n]; NaN where a line does not have it.
        evaluated: [v], epochs of the evaluations.
        precision: [v], AP in [0, 1].
        classification: kind and weight of the classification loss, in words; empty where the log does not say.
    """

    label: str
    epochs: Values
    terms: Mapping[Term, Values]
    evaluated: Values
    precision: Values
    classification: str = ""

    @property
    def layers(self) -> int:
        """Number of decoder layers that are logged."""
        return 1 + max(layer for layer, _ in self.terms)

    def total(self, layers: Sequence[int] | None = None, kinds: Sequence[Kind] = KINDS) -> Values:
        """Return the sum of the terms of some layers (by default all) and kinds: [n]."""
        chosen = range(self.layers) if layers is None else layers
        found: Values = np.sum([self.terms[layer, kind] for layer in chosen for kind in kinds], axis=0)
        return found


@dataclass(frozen=True)
class Place:
    """Where the logs of a run are.

    Attributes:
        label: runs of the same label are seeds of the same thing.
        path: a run directory of ours, or a ``log.txt``.
    """

    label: str
    path: Path


def find_runs(texts: Sequence[str]) -> list[Place]:
    """Return the runs that arguments name.

    Args:
        texts: ``[LABEL=]PATH``: a run directory, the folder of an ablation or of a row in it, which stands for all its
            runs, or a ``log.txt``. Without a label, that is the row of the ablation or the name of the folder.

    Raises:
        ConfigError: nothing is there, or no logs; names the path.
    """
    found = []
    for text in texts:
        label, _, named = ("", "", text) if Path(text).exists() else text.rpartition("=")
        path = Path(named)
        if not path.exists():
            raise ConfigError(f"{path}: does not exist", "give a run directory, an ablation's folder or a log.txt")
        study = next((folder for folder in (path, path.parent) if (folder / RECORD).is_file()), None)
        if study is not None:
            runs = [
                run
                for run in read_study(study).runs
                if RunDirectory(run.folder).metrics.is_file() and (study == path or run.folder.parent.name == path.name)
            ]
            if not runs:
                raise ConfigError(f"{path}: none of its runs has begun", "run the ablation first")
            found += [Place(label or run.row.label, run.folder) for run in runs]
        elif RunDirectory(path).metrics.is_file():
            found.append(Place(label or path.resolve().name, path))
        else:
            file = path / "log.txt" if path.is_dir() else path
            if not file.is_file():
                raise ConfigError(f"{path}: contains neither metrics.jsonl nor log.txt", "give a run directory")
            found.append(Place(label or file.resolve().parent.name, file))
    return found


By = Literal["step", "epoch"]
POINTS: tuple[By, ...] = ("step", "epoch")


def read_log(place: Place, by: By = "step") -> LossLog:
    """Return the losses of a run.

    Args:
        place: where its logs are.
        by: a point for every step that is logged, each of one batch; or the means over all steps of an epoch, which
            are all that there is of a ``log.txt``.

    Raises:
        ConfigError: its logs hold no one-to-one loss; names the file.
        OutputError: a file cannot be read.
    """
    if not place.path.is_dir():
        return read_epoch_log(place.path, place.label)
    return read_run(place.path, place.label) if by == "step" else read_run_by_epoch(place.path, place.label)


def read_run(folder: Path, label: str) -> LossLog:
    """Return the losses of a run of ours, at every logged step.

    Raises:
        ConfigError: no step is logged, or the settings cannot be read.
        OutputError: a file cannot be read.
    """
    directory = RunDirectory(folder)
    logged = [one for one in read_steps(directory.metrics) if one.terms]
    factor, classification = _weighing(folder)
    epochs = list(read_epochs(directory.log))
    evaluated = [one for one in epochs if one.precision is not None]
    # The first epoch that is over tells how many steps there are in one; a run may be shorter.
    first = [one.step for one in epochs if one.epoch == 0 and one.step > 0]
    scale = first[0] if first else max((one.step for one in logged if one.epoch == 0), default=math.nan)
    return LossLog(
        label,
        np.array([one.step for one in logged]) / scale,
        _terms([one.terms.get("primary", {}) for one in logged], directory.metrics, factor),
        np.array([one.step for one in evaluated]) / scale,
        np.array([one.precision for one in evaluated]),
        classification,
    )


def read_run_by_epoch(folder: Path, label: str) -> LossLog:
    """Return the losses of a run of ours, means over all steps of each epoch.

    Raises:
        ConfigError: no epoch is over, or the settings cannot be read.
        OutputError: a file cannot be read.
    """
    _, classification = _weighing(folder)
    return replace(read_epoch_log(RunDirectory(folder).log, label), classification=classification)


def _weighing(folder: Path) -> tuple[dict[str, float], str]:
    """Return the weight of each kind of loss of the primary path, and its classification loss in words."""
    settings = _settings(folder)
    weights, model = settings.primary_weights, settings.model
    name: str = settings.loss.primary.classification
    if isinstance(model, HuggingFaceConfig):
        name = f"that of {model.model_type}"
    return weights, f"{name} x{weights['class']:g}"


def _settings(folder: Path) -> RunConfig:
    """Return the settings of a run; where ``config.yaml`` is damaged or cut off, those in its last checkpoint.

    Raises:
        ConfigError: neither can be read; tells what is wrong with ``config.yaml``.
    """
    file, config = folder / RUN_SETTINGS, None
    try:
        config = load_config(RunConfig, preset=file).config
        found, whole = (len(text.splitlines()) for text in (file.read_text(encoding="utf-8"), dump_config(config)))
        if found >= whole:
            return config
        # What is left of a file is read without complaint, and defaults stand for the rest.
        fault = ConfigError(f"{file}: has {found} of {whole} lines")
    except ConfigError as error:
        fault = error
    try:
        path = resolve_checkpoint(folder, "last")
        stored = stored_config(load_checkpoint(path, with_optimizer=False), path)
    except CheckpointError:
        if config is None:
            raise fault from None
        logger.warning("%s; defaults are taken for the rest", fault.message)
        return config
    logger.warning("%s; the settings are taken from %s", fault.message, path.name)
    return stored


def read_epoch_log(path: Path, label: str) -> LossLog:
    """Return the losses of a ``log.txt`` with a JSON line an epoch, as DETR and its forks write it.

    All of its terms are weighted.

    Raises:
        ConfigError: no line has such a term.
        OutputError: the file cannot be read.
    """
    epochs = list(read_epochs(path))
    evaluated = [one for one in epochs if one.precision is not None]
    return LossLog(
        label,
        np.array([one.epoch for one in epochs]) + 1,
        _terms([one.losses for one in epochs], path, dict.fromkeys(KINDS, 1.0)),
        np.array([one.epoch for one in evaluated]) + 1,
        np.array([one.precision for one in evaluated]),
    )


def _terms(rows: Sequence[Layers], path: Path, factor: Mapping[str, float]) -> dict[Term, Values]:
    """Return the losses of all layers, each kind times its factor; a layer that no line has is not supervised: 0."""
    known = {layer for row in rows for layer in row for kind in KINDS if math.isfinite(row[layer].get(kind, math.nan))}
    if not known:
        raise ConfigError(f"{path}: no line has a one-to-one loss of the primary path", "give the log of a training")
    return {
        (layer, kind): factor[kind]
        * np.array([row.get(layer, {}).get(kind, math.nan if layer in known else 0.0) for row in rows])
        for layer in range(1 + max(known))
        for kind in KINDS
    }
