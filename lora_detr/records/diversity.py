"""What ``train --diagnostics`` wrote of a run: how much branches differ in positives and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_detr.json_value import JSON
from lora_detr.records.log_reading import json_lines
from lora_detr.records.run_directory import RunDirectory

PRIMARY = "primary"
"""Name of the primary path."""

MEASURES = {
    "jaccard": "overlap of positives (Jaccard)",
    "positives": "positives per target",
    "uncovered": "share of targets without a positive",
    "cosine_all": "cosine of gradients with the primary's",
    "norm_ratio": "length of gradients relative to the primary's",
}
"""Name in the file -> in words. The mean over decoder layers is taken where there is a value for each."""

BRANCHES = "branches"
TWO_BRANCHES = f"two {BRANCHES}"


Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DiversityLog:
    """One run.

    Attributes:
        label: of the run.
        steps: [n].
        curves: measure -> path or pair of paths -> [n]; NaN where it is undefined.
    """

    label: str
    steps: Values
    curves: Mapping[str, Mapping[str, Values]]


def read_diversity(path: Path, label: str) -> DiversityLog | None:
    """Return what a run wrote about its branches; None where it wrote nothing.

    Args:
        path: a run directory of ours; a ``log.txt`` by itself has nothing of this.
        label: of the run.
    """
    lines = json_lines(RunDirectory(path).diagnostics) if path.is_dir() else ()
    records = [line for line in lines if type(line.get("step")) is int]
    if not records:
        return None
    steps = np.array([float(record["step"]) for record in records])
    curves = {}
    for measure in MEASURES:
        found = [value if isinstance(value := record.get(measure), dict) else {} for record in records]
        names = dict.fromkeys(name for values in found for name in values)
        curves[measure] = {name: np.array([_mean(values.get(name)) for values in found]) for name in names}
    return DiversityLog(label, steps, curves)


def condensed(log: DiversityLog) -> DiversityLog:
    """Return the means over branches, and over pairs of branches, so that several runs can be compared.

    The primary path's own positives are left out: it has one for each target.
    """
    curves: dict[str, dict[str, Values]] = {}
    for measure, own in log.curves.items():
        groups: dict[str, list[Values]] = {}
        for name, values in own.items():
            if name != PRIMARY:
                pair = f"{BRANCHES} and {PRIMARY}" if PRIMARY in name.split("|") else TWO_BRANCHES
                groups.setdefault(pair if "|" in name else BRANCHES, []).append(values)
        curves[measure] = {name: _known_mean(np.array(members)) for name, members in groups.items()}
    return DiversityLog(log.label, log.steps, curves)


def late_mean(log: DiversityLog, measure: str, name: str) -> float:
    """Return the mean of a curve over the last half of a run, in which matching has settled; NaN if none is known."""
    curve = log.curves[measure].get(name)
    return math.nan if curve is None else float(_known_mean(curve[log.steps >= log.steps[-1] / 2]))


def _known_mean(values: Values) -> Values:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values).sum(0)
    found: Values = np.where(known > 0, np.nansum(values, 0) / np.maximum(known, 1), np.nan)
    return found


def _mean(value: JSON) -> float:
    """Return the mean over layers, or the value itself; NaN where it is undefined."""
    known = [float(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)]
    return float(np.mean(known)) if known else math.nan
