"""Everything that ``loradetr analyze-loss`` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lora_detr.atomic_files import prepare_directory, write_file
from lora_detr.errors import ConfigError
from lora_detr.experiments.losses.curves import (
    Band,
    band,
    convergence,
    convergence_as_markdown,
    curves_as_csv,
    grouped,
    over_seeds,
    smoothed,
)
from lora_detr.experiments.losses.diversity import diversity_as_csv, diversity_as_markdown
from lora_detr.experiments.losses.logs import By, LossLog, Values, find_runs, read_log
from lora_detr.losses.report import KINDS, Kind
from lora_detr.records.diversity import MEASURES, DiversityLog, condensed, read_diversity

DIVERSITY_WINDOWS = 8
"""Curves of branches are averaged over such a part of a run, since each point is one batch."""

WORDS: dict[Kind, str] = {"class": "classification", "l1": "L1 of boxes", "giou": "GIoU of boxes"}


def analyse(
    runs: Sequence[str],
    *,
    layer: int | None,
    smooth: float,
    loss: float | None,
    precision: float | None,
    folder: Path,
    by: By = "step",
) -> list[str]:
    """Write ``losses.png``, ``.svg`` and ``.csv`` and ``summary.md``, and the same of branches that were looked at.

    Args:
        runs: ``[LABEL=]PATH`` texts (see ``find_runs``).
        layer: decoder layer that is looked at, -1 for the last; None sums all.
        smooth: epochs that are averaged over.
        loss: level to reach; by default where the first label ends.
        precision: AP to reach, likewise.
        folder: for all of it.
        by: what a point of our runs is (see ``read_log``).

    Returns:
        Lines that sum it up and say what was written.

    Raises:
        ConfigError: a path holds no log, or no such layer.
        OutputError: something cannot be read or written.
    """
    from lora_detr.experiments.losses.picture import draw_bands  # matplotlib takes a while to import

    places = find_runs(runs)
    logs = [read_log(place, by) for place in places]
    layers = {log.layers for log in logs}
    if layer is not None and layer >= min(layers):
        raise ConfigError(f"--layer {layer}: the runs have {min(layers)} decoder layers", f"0 to {min(layers) - 1}")
    where = "all layers" if layer is None else "the last layer" if layer == -1 else f"layer {layer}"
    total = _summed(layer, KINDS)
    panels = [(f"One-to-one loss, {where}, weighted", _bands(logs, total, smooth))]
    panels += [(f"{WORDS[kind]}, {where}", _bands(logs, _summed(layer, [kind]), smooth)) for kind in KINDS]
    if all(log.evaluated.size for log in logs):
        evaluations = [
            over_seeds(label, [(log.evaluated, log.precision) for log in members])
            for label, members in grouped(logs).items()
        ]
        panels.append(("AP on the validation split", evaluations))
    note = f"window of {smooth:g} epochs; bands from the lowest to the highest seed" if smooth else "not smoothed"
    differing = _differing(logs)
    found, loss_level, precision_level = convergence(logs, total, smooth, loss, precision)
    summary = convergence_as_markdown(found, loss_level, precision_level, "loss") + differing
    files = {f"losses{suffix}": data for suffix, data in draw_bands(panels, "Primary path", note).items()}
    files |= {"losses.csv": curves_as_csv(logs).encode()}
    lines = [summary.rstrip()]
    diverse = [log for place in places if (log := read_diversity(place.path, place.label)) is not None]
    if diverse:
        several = len({log.label for log in diverse}) > 1
        brief = [condensed(log) for log in diverse] if several else diverse
        files |= {f"diversity{suffix}": data for suffix, data in _draw_diversity(brief).items()}
        files |= {"diversity.csv": diversity_as_csv(diverse).encode()}
        table = diversity_as_markdown(brief)
        summary += f"\nBranches, means over the second half of each run:\n\n{table}"
        summary += f"\nOne by one:\n\n{diversity_as_markdown(diverse)}" if several else ""
        lines += ["", table.rstrip()]
    files |= {"summary.md": summary.encode()}
    prepare_directory(folder)
    for name, data in files.items():
        write_file(folder / name, data)
    return [*lines, "", f"wrote {', '.join(files)} into {folder}"]


def _differing(logs: Sequence[LossLog]) -> str:
    """Return a warning where totals must not be compared, since classification losses are not the same."""
    kinds = {log.label: log.classification for log in logs if log.classification}
    if len(set(kinds.values())) < 2:
        return ""
    listed = "; ".join(f"{label}: {kind}" for label, kind in kinds.items())
    return f"\nClassification losses differ ({listed}): compare the box losses, not the totals.\n"


def _summed(layer: int | None, kinds: Sequence[Kind]) -> Callable[[LossLog], Values]:
    """Return what sums the losses of a log over layers and kinds."""

    def value(log: LossLog) -> Values:
        return log.total(None if layer is None else [layer % log.layers], kinds)

    return value


def _bands(logs: Sequence[LossLog], value: Callable[[LossLog], Values], smooth: float) -> list[Band]:
    return [band(label, members, value, smooth) for label, members in grouped(logs).items()]


def _draw_diversity(logs: Sequence[DiversityLog]) -> dict[str, bytes]:
    """Draw a panel a measure, and one for each kind of pair; the steps of a run are its axis.

    The branches of one label have a curve each; where labels are compared, each has the mean over its branches.
    """
    from lora_detr.experiments.losses.picture import draw_bands

    several = len({log.label for log in logs}) > 1
    names = {measure: {name for log in logs for name in log.curves[measure]} for measure in MEASURES}
    panels: dict[str, dict[str, list[tuple[Values, Values]]]] = {}
    for log in logs:
        for measure, curves in log.curves.items():
            for name, values in curves.items():
                words = MEASURES[measure]
                title = f"{words}, {name}" if several and len(names[measure]) > 1 else words
                label = log.label if several else name.replace("|", " and ")
                smooth = smoothed(log.steps, values, float(log.steps[-1]) / DIVERSITY_WINDOWS)
                panels.setdefault(title, {}).setdefault(label, []).append((log.steps, smooth))
    drawn = [
        (title, [over_seeds(label, members) for label, members in curves.items()]) for title, curves in panels.items()
    ]
    note = f"one batch per point, mean over decoder layers, window of 1/{DIVERSITY_WINDOWS} of the run"
    return draw_bands(drawn, "Branches", note, "optimiser step")
