"""The figures of a page: curves of the training, precision by recall, and diversity of branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_detr.errors import counted, printable
from lora_detr.evaluation.precision_recall import PrecisionTable
from lora_detr.records.diagrams import PALE, curve_style
from lora_detr.records.diversity import MEASURES, PRIMARY, DiversityLog, condensed
from lora_detr.records.plots import PANELS, RunCurves, draw_steps
from lora_detr.runs.report.svg import SIZE, inline_svg, panel_style

MAX_CURVES = 8
"""Curves of a figure that have names; more could not be kept apart."""

# Which of COCO's ten values of IoU have a curve.
_SHOWN_IOUS = (0, 2, 4, 6, 8)


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes:
        caption: what it shows, in a line.
        svg: element of HTML.
    """

    caption: str
    svg: Markup


def training_charts(curves: RunCurves) -> Iterator[Chart]:
    """Yield a chart for each panel of ``results.png``."""
    for name, draw in PANELS.items():
        with panel_style():
            axes = _axes()
            draw(axes, curves)
            draw_steps(axes, curves, named_epochs=False)
            caption = axes.get_title(loc="left")
            axes.set_title("", loc="left")
            yield _chart(axes, f"training-{name}", caption, "by optimiser step")


def precision_charts(table: PrecisionTable) -> Iterator[Chart]:
    """Yield precision by recall at several values of IoU, and of each class at IoU 0.5; nothing without an object."""
    known = {f"IoU {table.ious[k]:.2f}": curve for k in _SHOWN_IOUS if (curve := table.curve(k)) is not None}
    if not known:
        return
    with panel_style():
        axes = _axes()
        _draw_recall(axes, table.recalls, known)
        yield _chart(axes, "recall-iou", "Precision by recall, mean over classes", "at five values of IoU")
    measured = [place for place in range(len(table.names)) if table.curve(0, place) is not None]
    weakest = sorted(measured, key=lambda place: table.average(place, iou=0) or 0.0)[:MAX_CURVES]
    shown = measured if len(measured) <= MAX_CURVES else weakest
    each = {_short(table.names[place]): _known(table.curve(0, place)) for place in shown}
    with panel_style():
        axes = _axes()
        for place in set(measured) - set(shown):
            axes.plot(table.recalls, _known(table.curve(0, place)), color=PALE, lw=0.8)
        _draw_recall(axes, table.recalls, each)
        caption = "Precision by recall of each class, IoU 0.5"
        if len(shown) < len(measured):
            caption += f"; the {MAX_CURVES} weakest of {len(measured)} classes are named"
        yield _chart(axes, "recall-class", caption, f"{counted(len(measured), 'class', 'classes')}")


def diversity_charts(log: DiversityLog) -> Iterator[Chart]:
    """Yield a chart for each measure that a run logged of its branches."""
    for measure, curves in log.curves.items():
        own = {name: values for name, values in curves.items() if name != PRIMARY and np.isfinite(values).any()}
        if len(own) > MAX_CURVES:
            own = dict(condensed(log).curves[measure])
        if not own:
            continue
        with panel_style():
            axes = _axes()
            marker = "o" if log.steps.size <= 10 else None
            for i, (name, values) in enumerate(own.items()):
                colour, dashes = curve_style(i)
                label = name.replace("|", " and ")
                axes.plot(log.steps, values, color=colour, ls=dashes, lw=1.5, marker=marker, ms=3.5, label=label)
            axes.set_xlabel("optimiser step")
            axes.set_xlim(left=0)
            axes.legend(loc="best", fontsize=7.5)
            caption = MEASURES[measure]
            yield _chart(axes, f"branches-{measure}", caption[0].upper() + caption[1:], "by optimiser step")


def _axes() -> Axes:
    return Figure(figsize=SIZE, layout="constrained").subplots()


def _chart(axes: Axes, name: str, caption: str, description: str) -> Chart:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return Chart(caption, inline_svg(figure, name, f"{caption}: line chart, {description}"))


def _draw_recall(axes: Axes, recalls: Sequence[float] | np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    for i, (name, values) in enumerate(curves.items()):
        colour, dashes = curve_style(i)
        axes.plot(recalls, values, color=colour, ls=dashes, lw=1.5, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="best", fontsize=7.5)


def _short(name: str, length: int = 24) -> str:
    text = printable(name)
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text.replace("_", " ", 1) if text.startswith("_") else text  # an underscore would hide it in a legend


def _known(curve: np.ndarray | None) -> np.ndarray:
    assert curve is not None
    return curve
