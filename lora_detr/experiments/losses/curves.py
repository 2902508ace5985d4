"""Curves of losses over seeds, and how fast they fall (the paper's Figure 3)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_detr.experiments.losses.logs import LossLog, Values
from lora_detr.experiments.markdown import markdown_table
from lora_detr.losses.report import KINDS

POINTS = 400
"""Of a curve that is compared over seeds."""


@dataclass(frozen=True, eq=False)
class Band:
    """Several seeds of one thing.

    Attributes:
        label: of the thing.
        epochs: [n], that all seeds have in common; steps where the curves are by step.
        seeds: [s, n], smoothed, one row a seed.
    """

    label: str
    epochs: Values
    seeds: Values

    @property
    def mean(self) -> Values:
        """[n]."""
        found: Values = self.seeds.mean(0)
        return found


@dataclass(frozen=True)
class Convergence:
    """How fast the runs of one label learn.

    Attributes:
        label: of the runs.
        seeds: number of runs.
        final_loss: mean smoothed loss at the end.
        loss_epochs: of each run, until its smoothed loss reaches the level; None if it never does.
        final_precision: AP in [0, 1] of each run's last evaluation; empty without one.
        precision_epochs: of each run, until an evaluation reaches the level; None if none does.
        ahead: epochs of the evaluations at which the mean AP is above that of the first label.
        compared: number of evaluations that all runs of both labels have.
    """

    label: str
    seeds: int
    final_loss: float
    loss_epochs: tuple[float | None, ...]
    final_precision: tuple[float, ...]
    precision_epochs: tuple[float | None, ...]
    ahead: tuple[float, ...]
    compared: int


def grouped(logs: Sequence[LossLog]) -> dict[str, list[LossLog]]:
    """Return the logs by label, in the order of their first appearance."""
    found: dict[str, list[LossLog]] = {}
    for log in logs:
        found.setdefault(log.label, []).append(log)
    return found


def smoothed(epochs: Values, values: Values, width: float) -> Values:
    """Return the mean over the points at most ``width / 2`` epochs away, fewer at both ends; NaN is left out."""
    known = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    first = np.searchsorted(epochs, epochs - width / 2 - 1e-9, "left")
    last = np.searchsorted(epochs, epochs + width / 2 + 1e-9, "right")
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def band(label: str, logs: Sequence[LossLog], value: Callable[[LossLog], Values], width: float) -> Band:
    """Return the smoothed curves of several seeds at the epochs that they share.

    Args:
        label: of the seeds.
        logs: of the seeds.
        value: what is drawn of a log, [n].
        width: epochs that are averaged over.
    """
    return over_seeds(label, [(log.epochs, smoothed(log.epochs, value(log), width)) for log in logs])


def over_seeds(label: str, curves: Sequence[tuple[Values, Values]]) -> Band:
    """Return curves (places, values) of several seeds at places that all of them reach."""
    first, last = max(places[0] for places, _ in curves), min(places[-1] for places, _ in curves)
    shared = np.linspace(first, last, min(max(places.size for places, _ in curves), POINTS))
    rows = []
    for places, values in curves:
        known = np.isfinite(values)
        rows.append(np.interp(shared, places[known], values[known]) if known.any() else shared * math.nan)
    return Band(label, shared, np.array(rows))


def convergence(
    logs: Sequence[LossLog],
    value: Callable[[LossLog], Values],
    width: float,
    loss_level: float | None = None,
    precision_level: float | None = None,
) -> tuple[list[Convergence], float, float]:
    """Return how fast each label learns.

    Args:
        logs: of all runs.
        value: the loss that is looked at, [n].
        width: epochs that are averaged over.
        loss_level: that is to be reached; by default where the first label ends.
        precision_level: AP likewise.

    Returns:
        Of each label, and both levels; NaN where no run was evaluated.
    """
    groups = grouped(logs)
    curves = {label: [smoothed(log.epochs, value(log), width) for log in members] for label, members in groups.items()}
    ends = {label: [_last(curve) for curve in found] for label, found in curves.items()}
    final = {
        label: [_last(log.precision) for log in members if log.precision.size] for label, members in groups.items()
    }
    base = next(iter(groups))
    loss = float(np.mean(ends[base])) if loss_level is None else loss_level
    precision = (
        (float(np.mean(final[base])) if final[base] else math.nan) if precision_level is None else precision_level
    )
    found = []
    for label, members in groups.items():
        reached = [_first_epoch(log.epochs, curve <= loss) for log, curve in zip(members, curves[label], strict=True)]
        seen = [_first_epoch(log.evaluated, log.precision >= precision) for log in members]
        own, first = _mean_precision(members), _mean_precision(groups[base])
        shared = sorted(own.keys() & first.keys())
        found.append(
            Convergence(
                label,
                len(members),
                float(np.mean(ends[label])),
                tuple(reached),
                tuple(final[label]),
                tuple(seen),
                tuple(epoch for epoch in shared if own[epoch] > first[epoch]),
                len(shared),
            )
        )
    return found, loss, precision


def _mean_precision(logs: Sequence[LossLog]) -> dict[float, float]:
    """Return the mean AP of runs at each epoch at which all of them were evaluated."""
    curves = [dict(zip(log.evaluated.tolist(), log.precision.tolist(), strict=True)) for log in logs]
    shared = set.intersection(*(set(curve) for curve in curves))
    return {epoch: float(np.mean([curve[epoch] for curve in curves])) for epoch in sorted(shared)}


def curves_as_csv(logs: Sequence[LossLog]) -> str:
    """Return every term of every run at every logged point, not smoothed."""
    layers = max(log.layers for log in logs)
    names = [f"layer{layer}_{kind}" for layer in range(layers) for kind in KINDS]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "run", "epoch", "total", *names])
    for label, members in grouped(logs).items():
        for number, log in enumerate(members):
            total = log.total()
            columns = [
                log.terms[layer, kind] if layer < log.layers else np.full(log.epochs.size, math.nan)
                for layer in range(layers)
                for kind in KINDS
            ]
            for row, epoch in enumerate(log.epochs):
                cells = [_cell(total[row]), *(_cell(column[row]) for column in columns)]
                writer.writerow([label, number, f"{epoch:.4f}", *cells])
    return text.getvalue()


def convergence_as_markdown(found: Sequence[Convergence], loss: float, precision: float, what: str) -> str:
    """Return the summary as a Markdown table.

    Args:
        found: of each label.
        loss: level of the loss.
        precision: level of AP in [0, 1], NaN where no run was evaluated.
        what: the loss in words.
    """
    head = ["runs", "seeds", f"final {what}", f"epochs to {loss:.4g}"]
    evaluated = math.isfinite(precision)
    head += ["final AP", f"epochs to AP {precision:.3f}", f"AP above {found[0].label} at epochs"] if evaluated else []
    rows = []
    for one in found:
        cells = [one.label, str(one.seeds), f"{one.final_loss:.4g}", reached_text(one.loss_epochs)]
        if evaluated:
            final = f"{np.mean(one.final_precision):.3f}" if one.final_precision else "-"
            cells += [final, reached_text(one.precision_epochs), "-" if one is found[0] else ahead_text(one)]
        rows.append(cells)
    return "\n".join(markdown_table(head, rows)) + "\n"


def ahead_text(one: Convergence) -> str:
    """Return where the mean AP is above that of the first label; where it crosses can be read off it."""
    if not one.compared:
        return "-"
    if len(one.ahead) in (0, one.compared):
        return "none" if not one.ahead else f"all {one.compared}"
    return ", ".join(f"{epoch:g}" for epoch in one.ahead) + f" of {one.compared}"


def reached_text(epochs: Sequence[float | None]) -> str:
    """Return the mean over the runs that reached a level, and how many did if not all."""
    known = [epoch for epoch in epochs if epoch is not None]
    if not known:
        return "not reached"
    share = "" if len(known) == len(epochs) else f" ({len(known)} of {len(epochs)} runs)"
    return f"{np.mean(known):.1f}{share}"


def _first_epoch(epochs: Values, reached: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float | None:
    places = np.flatnonzero(reached)
    return float(epochs[places[0]]) if places.size else None


def _last(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else math.nan


def _cell(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
