"""The picture of a study: measured AP of every row and seed beside the published, and AP against steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lora_detr.evaluation.coco_eval import METRICS
from lora_detr.experiments.tables.overlap import FIGURES, WORDS, Diversity, RowOverlap, correlation_in_words, points
from lora_detr.experiments.tables.results import RowResult, not_comparable
from lora_detr.experiments.tables.study import Study
from lora_detr.records.diagrams import BLUE, GREEN, GREY, ORANGE, PALE, curve_style, encoded, in_style

MARKS: dict[Diversity, tuple[str, str]] = {"none": ("o", BLUE), "settings": ("s", GREEN), "rules": ("D", ORANGE)}

CHARACTERS_AN_INCH = 16
"""Of the note, so that its lines end inside the picture."""


def draw_study(study: Study, results: Sequence[RowResult]) -> bytes:
    """Return a PNG: rows from top to bottom with one dot a seed, and the mean curve of every row with its range."""
    table = study.info.table
    published = any(METRICS[0] in result.row.published for result in results)
    curved = any(len(run.curve.steps) > 1 for result in results for run in result.runs)
    with in_style():
        figure = Figure(figsize=(4.6 + 2.6 * published + 5.0 * curved, 1.6 + 0.34 * len(results)), layout="constrained")
        panels = figure.subplots(
            1, 1 + published + curved, squeeze=False, width_ratios=[1.6, *[0.9] * published, *[2.0] * curved]
        )[0]
        _draw_measured(panels[0], results)
        if published:
            _draw_published(panels[1], results)
        if curved:
            _draw_curves(panels[-1], results)
        reasons = not_comparable(study)
        note = (
            f"not comparable with the published figures: {'; '.join(reasons)}"
            if reasons and published
            else "; ".join(reasons)
        )
        figure.suptitle(table.title, x=0.01, ha="left", fontsize=11, weight="bold")
        lines = textwrap.wrap(note, int(CHARACTERS_AN_INCH * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color=GREY)
        return encoded(figure)


def draw_overlaps(study: Study, overlaps: Sequence[RowOverlap]) -> bytes:
    """Return a PNG: overlap of branches against gain, a mark with its 95 % interval for each row, a panel a figure."""
    reference = study.info.table.reference or study.info.table.rows[0].name
    numbers = {row.result.row.name: index for index, row in enumerate(overlaps, 1)}
    with in_style():
        figure = Figure(figsize=(12.5, 4.9), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(FIGURES)), FIGURES, strict=True):
            axes.set_title(f"{name}: {correlation_in_words(overlaps, name)}", fontsize=8)
            axes.set_xlabel("overlap of the positives of two branches (Jaccard)")
            axes.set_ylabel(f"{name} against {reference} (percentage points)")
            axes.axhline(0, color=GREY, lw=0.8)
            for row in points(overlaps, name):
                place, margin = (row.overlap, row.gains[name].mean), row.gains[name].margin
                if np.isfinite(margin):
                    axes.errorbar(*place, margin, color=PALE, lw=1, zorder=1)
                axes.plot(*place, MARKS[row.diversity][0], color=MARKS[row.diversity][1], ms=5)
                number = str(numbers[row.result.row.name])
                axes.annotate(number, place, (4, 3), textcoords="offset points", fontsize=7.5)
        kinds = [(WORDS[kind], kind) for kind in MARKS]
        rows = [(f"{numbers[row.result.row.name]}  {row.result.row.name}", row.diversity) for row in overlaps]
        entries = [
            (Line2D([], [], ls="", marker=MARKS[kind][0], color=MARKS[kind][1]), text) for text, kind in kinds + rows
        ]
        figure.legend(*zip(*entries, strict=True), loc="outside right upper", fontsize=7.5)
        figure.suptitle(study.info.table.title, x=0.01, ha="left", fontsize=11, weight="bold")
        return encoded(figure)


def _rows(axes: Axes, results: Sequence[RowResult], named: bool) -> None:
    places = range(len(results))
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_yticks(places, [result.row.label for result in results] if named else [""] * len(results))
    axes.grid(True, axis="y")
    axes.grid(True, axis="x", alpha=0.5)


def _draw_measured(axes: Axes, results: Sequence[RowResult]) -> None:
    axes.set_title("Measured AP (percent)")
    _rows(axes, results, named=True)
    for place, result in enumerate(results):
        values = result.values(METRICS[0])
        axes.plot(values, [place] * len(values), "o", color=BLUE, ms=4, alpha=0.6, mew=0)
        if values:
            mean = float(np.mean(values))
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=BLUE, lw=2)
            axes.annotate(f"{mean:.1f}", (mean, place - 0.32), ha="center", va="bottom", fontsize=7, color=BLUE)


def _draw_published(axes: Axes, results: Sequence[RowResult]) -> None:
    axes.set_title("Published")
    _rows(axes, results, named=False)
    for place, result in enumerate(results):
        value = result.row.published.get(METRICS[0])
        if value is not None:
            axes.plot([value], [place], "D", color=ORANGE, ms=5)
            axes.annotate(f"{value:.1f}", (value, place - 0.2), ha="center", va="bottom", fontsize=7, color=ORANGE)


def _draw_curves(axes: Axes, results: Sequence[RowResult]) -> None:
    axes.set_title("AP against steps: mean and range over seeds")
    axes.set_xlabel("optimiser step")
    for index, result in enumerate(results):
        curves = [run.curve for run in result.runs if run.curve.steps]
        if not curves:
            continue
        shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
        values = np.array([[dict(zip(c.steps, c.precision, strict=True))[step] for step in shared] for c in curves])
        colour, dashes = curve_style(index)
        axes.plot(shared, values.mean(0), color=colour, ls=dashes, lw=1.6, label=result.row.label)
        axes.fill_between(shared, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
    axes.legend(fontsize=7, loc="lower right")
