"""The primary path's one-to-one losses over a run, read off its logs: ours, or the ``log.txt`` of DETR's many forks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lora_detr.config.load import load_config
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.errors import ConfigError
from lora_detr.experiments.tables.study import RECORD, read_study
from lora_detr.json_value import JSON
from lora_detr.losses.report import KINDS, Kind
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.log_reading import json_lines, number
from lora_detr.records.metrics import DETR_NAMES
from lora_detr.records.run_directory import RunDirectory

Values = NDArray[np.float64]
Term = tuple[int, Kind]
"""Decoder layer, 0 first, and which loss."""

_OURS = re.compile(r"primary/layer(\d+)/(\w+)")


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
            raise ConfigError(f"{path}: nothing is there", "give a run directory, an ablation's folder or a log.txt")
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
                raise ConfigError(f"{path}: neither metrics.jsonl nor log.txt is in it", "give a run directory")
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
    records = [record for record in json_lines(directory.metrics) if isinstance(record.get("terms"), dict)]
    factor, classification = _weighing(folder)
    rows: list[dict[Term, float]] = []
    for record in records:
        named = record["terms"]
        assert isinstance(named, dict)
        row: dict[Term, float] = {}
        for name, value in named.items():
            match = _OURS.fullmatch(name)
            for kind in KINDS:
                if match is not None and match[2] == kind:
                    row[int(match[1]), kind] = factor[kind] * number(value)
        rows.append(row)
    epochs = list(json_lines(directory.log))
    evaluations = [(epoch["step"], epoch["test_coco_eval_bbox"]) for epoch in epochs if "test_coco_eval_bbox" in epoch]
    # The first epoch that is over tells how many steps there are in one; a run may be shorter.
    whole = [number(record["step"]) for record in records if record.get("epoch") == 0]
    steps = max(whole, default=math.nan)
    scale = _epoch_length(epochs, steps)
    return LossLog(
        label,
        np.array([number(record["step"]) for record in records]) / scale,
        _terms(rows, directory.metrics),
        np.array([number(step) for step, _ in evaluations]) / scale,
        np.array([_first(values) for _, values in evaluations]),
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
    primary = load_config(RunConfig, preset=folder / RUN_SETTINGS).config.loss.primary
    return primary.weights.by_kind(), f"{primary.classification} x{primary.weights.classification:g}"


def read_epoch_log(path: Path, label: str) -> LossLog:
    """Return the losses of a ``log.txt`` with a JSON line an epoch, as DETR and its forks write it.

    The last layer's terms have no number there, those before it 0, 1 and so on; all of them are weighted.

    Raises:
        ConfigError: no line has such a term.
        OutputError: the file cannot be read.
    """
    rows: list[dict[Term, float]] = []
    records = [record for record in json_lines(path) if "epoch" in record]
    for record in records:
        numbers = {int(key.rsplit("_", 1)[1]) for key in record if re.fullmatch(r"train_loss_ce_\d+", key)}
        last = max(numbers, default=-1) + 1
        row: dict[Term, float] = {}
        for kind, name in DETR_NAMES.items():
            for layer in range(last + 1):
                key = f"train_{name}" if layer == last else f"train_{name}_{layer}"
                row[layer, _kind(kind)] = number(record.get(key))
        rows.append(row)
    evaluations = [
        (record["epoch"], record["test_coco_eval_bbox"]) for record in records if "test_coco_eval_bbox" in record
    ]
    return LossLog(
        label,
        np.array([number(record["epoch"]) for record in records]) + 1,
        _terms(rows, path),
        np.array([number(epoch) for epoch, _ in evaluations]) + 1,
        np.array([_first(values) for _, values in evaluations]),
    )


def _kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind == name)


def _epoch_length(epochs: Sequence[Mapping[str, JSON]], logged: float) -> float:
    first = [number(record.get("step")) for record in epochs if record.get("epoch") == 0]
    return first[0] if first and first[0] > 0 else logged


def _terms(rows: Sequence[Mapping[Term, float]], path: Path) -> dict[Term, Values]:
    keys = sorted({key for row in rows for key, value in row.items() if math.isfinite(value)})
    if not keys:
        raise ConfigError(f"{path}: no line has a one-to-one loss of the primary path", "give the log of a training")
    layers = 1 + max(layer for layer, _ in keys)
    every: list[Term] = [(layer, kind) for layer in range(layers) for kind in KINDS]
    return {key: np.array([row.get(key, math.nan) for row in rows]) for key in every}


def _first(values: JSON) -> float:
    """Return AP of COCO's twelve numbers; NaN where there is none."""
    value = number(values[0]) if isinstance(values, list) and values else math.nan
    return value if value >= 0 else math.nan
