"""The paper's Figure 3, drawn from logs: total and terms of the one-to-one loss by epoch, seeds as a band."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_detr.experiments.loss_curves import Band
from lora_detr.training.diagrams import GREY, curve_style, encoded, in_style


def draw_bands(
    panels: Sequence[tuple[str, Sequence[Band]]], title: str, note: str, along: str = "epoch"
) -> dict[str, bytes]:
    """Return the same figure as PNG and SVG, by suffix.

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
        figure = Figure(figsize=(5.4 * columns, 0.6 + 3.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for place, (headline, bands) in zip(axes, panels, strict=False):
            _draw(place, headline, bands, along)
        for place in axes[len(panels) :]:
            place.set_visible(False)
        figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=11, weight="bold")
        figure.supxlabel(note.replace("$", r"\$"), x=0.01, ha="left", fontsize=7.5, color=GREY)
        text = io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        return {".png": encoded(figure), ".svg": text.getvalue()}


def _draw(axes: Axes, headline: str, bands: Sequence[Band], along: str) -> None:
    axes.set_title(headline)
    axes.set_xlabel(along)
    late: list[float] = []
    for index, band in enumerate(bands):
        colour, dashes = curve_style(index)
        name = band.label if len(band.seeds) == 1 else f"{band.label} ({len(band.seeds)} seeds)"
        axes.plot(band.epochs, band.mean, color=colour, ls=dashes, lw=1.6, label=name.replace("$", r"\$"))
        if len(band.seeds) > 1:
            axes.fill_between(band.epochs, band.seeds.min(0), band.seeds.max(0), color=colour, alpha=0.15, lw=0)
        late += [*band.seeds[:, band.epochs.size // 50 :].flatten()]
    known = np.array(late)[np.isfinite(late)]
    if known.size:
        # The first steps are several times as high as all that follows.
        low, high = known.min(), np.percentile(known, 99.5)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-12)
    axes.legend(fontsize=7.5)
