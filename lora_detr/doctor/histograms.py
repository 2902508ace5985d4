"""Diagrams of a data set: how large its objects are, of which classes, and how many an image has.

Matplotlib is slow to import, so callers import this module where they draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from lora_detr.data.coco.report import ClassCount, count_classes
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.quality.detector_limits import SMALL, DetectorLimits, shorter_sides
from lora_detr.errors import counted, printable
from lora_detr.records.diagrams import BLUE, GREY, ORANGE, encoded, in_style

SHOWN_CLASSES = 100
"""Classes that a diagram has a bar for; of more, the most frequent half and the rarest half."""

_WIDTH, _HEIGHT, _DPI = 8.0, 4.5, 120
_BINS = 50
_STYLES = ((BLUE, True), (ORANGE, False))
_LONGEST_NAME = 28


def object_sizes(splits: Sequence[CocoSplit], limits: DetectorLimits) -> bytes:
    """Return a PNG of the shorter sides of objects after resizing, with the line below which they are hard to find."""
    sides = [shorter_sides(split, limits) for split in splits]
    everything = np.concatenate((*sides, [SMALL / 2, SMALL * 2]))
    edges = np.geomspace(max(0.1, everything.min()) * 0.9, everything.max() * 1.1, _BINS)
    with in_style():
        figure, axes = _diagram("Size of objects at the input size")
        for i, (split, own) in enumerate(zip(splits, sides, strict=True)):
            small = float((own < SMALL).mean()) if len(own) else 0.0
            _histogram(axes, own, edges, i, f"{split.report.file}: {small:.1%} below {SMALL:g} pixels")
        axes.axvline(SMALL, color=GREY, linestyle="--", linewidth=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if edges[0] <= tick <= edges[-1]]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        prepared = limits.prepared
        size = f"{prepared.size}x{prepared.size}" if prepared.square else f"shorter side of the image {prepared.size}"
        axes.set_xlabel(f"shorter side of the object in pixels ({size}); dashed: {SMALL:g} pixels")
        return _finished(figure, axes, "objects")


def object_counts(splits: Sequence[CocoSplit], limits: DetectorLimits) -> bytes:
    """Return a PNG of how many objects images have, with what the detector can find."""
    counts = [split.records.object_counts for split in splits]
    most = max((int(own.max(initial=0)) for own in counts), default=0)
    width = math.ceil((most + 1) / _BINS)  # whole numbers, so that every bin has as many
    edges = np.arange(0, most + 1 + width, width) - 0.5
    with in_style():
        figure, axes = _diagram("Objects per image")
        for i, (split, own) in enumerate(zip(splits, counts, strict=True)):
            label = f"{split.report.file}: {own.mean():.1f} on average, at most {own.max():,}"
            _histogram(axes, own, edges, i, label)
        for limit, what, dashes in ((limits.detections, "detections kept", ":"), (limits.queries, "queries", "--")):
            if most >= 0.5 * limit:
                axes.axvline(limit, color=GREY, linestyle=dashes, linewidth=1.2, label=f"{limit} {what}")
        axes.set_xlabel("objects")
        return _finished(figure, axes, "images")


def class_counts(splits: Sequence[CocoSplit]) -> bytes:
    """Return a PNG of how many objects classes have, the most frequent first."""
    classes = sorted(count_classes([split.report for split in splits]), key=lambda each: -(each.train + each.val))
    shown = classes
    if len(classes) > SHOWN_CLASSES:
        shown = [*classes[: SHOWN_CLASSES // 2], *classes[-SHOWN_CLASSES // 2 :]]
    title = counted(len(classes), "class", "classes")
    if len(shown) < len(classes):
        title += f": the {SHOWN_CLASSES // 2} most frequent and the {SHOWN_CLASSES // 2} rarest"
    with in_style():
        figure, axes = _diagram(title, height=max(2.2, 1.3 + 0.26 * len(shown)))
        _bars(axes, shown, [split.report.file for split in splits])
        return _finished(figure, axes, "")


def _bars(axes: Axes, classes: Sequence[ClassCount], files: Sequence[str]) -> None:
    places = np.arange(len(classes))
    thickness = 0.8 / len(files)
    numbers = [[each.train for each in classes], [each.val for each in classes]][: len(files)]
    largest = max(max(own, default=0) for own in numbers)
    least = min((number for own in numbers for number in own if number), default=1)
    if largest >= 50 * least:
        axes.set_xscale("log")
        axes.set_xlim(0.7, largest * 2.5)
    else:
        axes.set_xlim(0, max(1, largest) * 1.1)
    for i, (file, own) in enumerate(zip(files, numbers, strict=True)):
        offset = (i - (len(files) - 1) / 2) * thickness
        axes.barh(places + offset, own, thickness, color=_STYLES[i % 2][0], label=file)
        for place, number in zip((places + offset).tolist(), own, strict=True):
            at = max(number, axes.get_xlim()[0])
            axes.annotate(f" {number:,}", (at, place), va="center", fontsize=6, color=GREY)
    axes.set_yticks(places, [_short(printable(each.name)) for each in classes], fontsize=8)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("objects")


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # else the text between two of them is a formula
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _diagram(title: str, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _histogram(axes: Axes, values: NDArray[np.generic], edges: NDArray[Any], index: int, label: str) -> None:
    """Draw shares, so that splits of different sizes can be compared."""
    colour, is_filled = _STYLES[index % 2]
    weights = np.full(len(values), 1 / max(1, len(values)))
    shares, _ = np.histogram(values, edges, weights=weights)
    axes.stairs(shares, edges, fill=is_filled, color=colour, alpha=0.6 if is_filled else 1, label=label, zorder=2)


def _finished(figure: Figure, axes: Axes, what: str) -> bytes:
    if what:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_ylabel(f"share of {what}")
    figure.legend(loc="outside lower center", ncols=1, fontsize=8)
    return encoded(figure)
