"""The paper's Figure 3, drawn from logs: total and terms of the one-to-one loss by epoch, seeds as a band."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lora_detr.experiments.losses.curves import Band
from lora_detr.records.diagrams import GREY, curve_style, encoded, in_style

LEGEND = 2.4
"""Inches beside the panels."""


def draw_bands(
    panels: Sequence[tuple[str, Sequence[Band]]], title: str, note: str, along: str = "epoch"
) -> dict[str, bytes]:
    """Return the same figure as PNG and SVG, by suffix; a label looks the same in all panels.

    Args:
        panels: headline and curves of each.
        title: above all of them.
        note: below all of them.
        along: what the horizontal axes count.
    """
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    # Without a salt of its own, ids in an SVG would differ from one drawing to the next.
    with in_style(), mpl.rc_context({"svg.hashsalt": title}):
        figure = Figure(figsize=(5.4 * columns + LEGEND, 0.6 + 3.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        labels = list(dict.fromkeys(band.label for _, bands in panels for band in bands))
        styles = {label: curve_style(index) for index, label in enumerate(labels)}
        handles: dict[str, Line2D] = {}
        for place, (headline, bands) in zip(axes, panels, strict=False):
            for name, curve in _draw(place, headline, bands, along, styles):
                handles.setdefault(name, curve)
        ends = [end for _, bands in panels for band in bands for end in (*band.epochs[:1], *band.epochs[-1:])]
        if ends:
            room = 0.03 * (max(ends) - min(ends)) or 0.5
            # What lies below each other is of the same time.
            for place in axes[: len(panels)]:
                place.set_xlim(min(ends) - room, max(ends) + room)
        for place in axes[len(panels) :]:
            place.set_visible(False)
        names = [name.replace("$", r"\$") for name in handles]
        figure.legend(list(handles.values()), names, loc="outside right upper", fontsize=7.5)
        figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=11, weight="bold")
        figure.supxlabel(note.replace("$", r"\$"), x=0.01, ha="left", fontsize=7.5, color=GREY)
        text = io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        return {".png": encoded(figure), ".svg": text.getvalue()}


def _draw(
    axes: Axes, headline: str, bands: Sequence[Band], along: str, styles: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[str, Line2D]]:
    """Draw a panel; give the name and the curve of each band."""
    axes.set_title(headline)
    axes.set_xlabel(along)
    late: list[float] = []
    for band in bands:
        colour, dashes = styles[band.label]
        # A line through one point would not be seen.
        alone = "o" if band.epochs.size == 1 else None
        (curve,) = axes.plot(band.epochs, band.mean, color=colour, ls=dashes, lw=1.6, marker=alone)
        if len(band.seeds) > 1:
            axes.fill_between(band.epochs, band.seeds.min(0), band.seeds.max(0), color=colour, alpha=0.15, lw=0)
        late += [*band.seeds[:, band.epochs.size // 50 :].flatten()]
        yield band.label if len(band.seeds) == 1 else f"{band.label} ({len(band.seeds)} seeds)", curve
    known = np.array(late)[np.isfinite(late)]
    if known.size and known.min() < known.max():
        # The first steps are several times as high as all that follows.
        low, high = known.min(), np.percentile(known, 99.5)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
