"""Read the logs of runs, which may be being written, cut off or damaged: a warning says what was left out."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lora_detr.records.metrics import DETR_NAMES
from lora_detr.records.tolerant import Dropped, Meaning, Rows, first_object, json_object, kept_lines

T = TypeVar("T")
logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"train_loss_ce_(\d+)")

Layers = Mapping[int, Mapping[str, float]]
"""Decoder layer, 0 first -> kind of loss -> value."""


@dataclass(frozen=True)
class LoggedStep:
    """A line of ``metrics.jsonl``. A number that is missing or makes no sense is NaN.

    Attributes:
        step: optimiser steps done.
        epoch: 0 at first.
        loss: the weighted total.
        gradient_norm: before clipping.
        seconds: of the step.
        rates: parameter group -> learning rate.
        terms: source -> its losses before weighting; sources without decoder layers are left out.
    """

    step: float
    epoch: float
    loss: float
    gradient_norm: float
    seconds: float
    rates: Mapping[str, float]
    terms: Mapping[str, Layers]


@dataclass(frozen=True)
class LoggedEpoch:
    """A line of ``log.txt``, ours or of DETR's many forks. A number that is missing or makes no sense is NaN.

    Attributes:
        epoch: 0 at first.
        step: that it ended at; NaN in logs of forks.
        losses: weighted means of the primary path.
        precision: AP in [0, 1], NaN if there was nothing to measure; None if it was not evaluated.
    """

    epoch: float
    step: float
    losses: Layers
    precision: float | None


def read_steps(path: Path) -> Iterator[LoggedStep]:
    """Yield the steps of a ``metrics.jsonl``; nothing if there is no such file.

    Raises:
        OutputError: the system refuses to read it.
    """
    for record in _reported(path, _with_mappings):
        step = _number(record.get("step"))
        if math.isfinite(step):
            yield LoggedStep(
                step,
                _number(record.get("epoch")),
                _number(record.get("loss")),
                _number(record.get("gradient_norm")),
                _number(record.get("seconds")),
                {group: _number(rate) for group, rate in record.get("lr", {}).items()},
                _by_layer(record.get("terms", {})),
            )


def read_epochs(path: Path) -> Iterator[LoggedEpoch]:
    """Yield the epochs of a ``log.txt``; nothing if there is no such file; errors as of ``read_steps``."""
    for record in _reported(path, _with_mappings):
        epoch, metrics = _number(record.get("epoch")), record.get("test_coco_eval_bbox")
        if math.isfinite(epoch):
            precision = _measured((*metrics, None)[0]) if isinstance(metrics, list) else None
            yield LoggedEpoch(epoch, _number(record.get("step")), _detr_losses(record), precision)


def read_evaluations(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a ``results.csv`` that have a step; -1, COCO's word for nothing to measure, becomes NaN.

    Raises:
        OutputError: the system refuses to read it.
    """
    for row in _reported(path, Rows()):
        if row:
            yield {name: _measured(value) for name, value in row.items()}


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one if there is none; errors as of ``read_steps``."""
    found, fault = first_object(path)
    if fault:
        _warn_once(fault)
    return found


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; errors as of ``read_steps``."""
    return _reported(path, json_object)


def _reported(path: Path, meaning: Meaning[T]) -> Iterator[T]:
    """Yield what the lines of a file mean, and warn of those that mean nothing."""
    dropped = Dropped(path)
    for _, found in kept_lines(path, meaning, dropped):
        yield found
    if dropped:
        _warn_once(str(dropped))


@functools.cache
def _warn_once(text: str) -> None:
    """Warn of a fault once, however often a file is read."""
    logger.warning(text)


def _number(value: Any) -> float:
    """Return a number, or one that a text holds; NaN for anything else, also if its sums and squares would overflow."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if abs(found) < 1e100 else math.nan


def _measured(value: Any) -> float:
    return found if (found := _number(value)) >= 0 else math.nan


def _with_mappings(text: str) -> dict[str, Any] | None:
    """Return a JSON line whose terms and rates are objects if there are any."""
    record = json_object(text)
    good = record is not None and all(isinstance(record.get(key, {}), dict) for key in ("terms", "lr"))
    return record if good else None


def _by_layer(terms: Mapping[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """Sort terms that are named ``source/layerJ/kind``."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for key, value in terms.items():
        source, _, rest = key.partition("/layer")
        layer, _, kind = rest.partition("/")
        if layer.isdecimal():
            found.setdefault(source, {}).setdefault(int(layer), {})[kind] = _number(value)
    return found


def _detr_losses(record: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the losses under DETR's names: those of the last layer have no number, those before it 0, 1 and so on."""
    last = 1 + max((int(match[1]) for match in map(_NUMBERED.fullmatch, record) if match), default=-1)
    return {
        layer: {
            kind: _number(record.get(f"train_{name}" if layer == last else f"train_{name}_{layer}"))
            for kind, name in DETR_NAMES.items()
        }
        for layer in range(last + 1)
    }
