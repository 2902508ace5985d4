"""Pictures of a run, drawn from its logs alone: ``results.png``, and a small one of losses and AP.

Matplotlib is slow to import, so callers import this module where they draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator
from numpy.typing import NDArray

from lora_detr.atomic_files import write_file
from lora_detr.evaluation.coco_eval import USAGE
from lora_detr.losses.report import KINDS
from lora_detr.records.diagrams import BLUE, COLOURS, GREEN, GREY, PALE, PURPLE, encoded, in_style
from lora_detr.records.log_reading import read_epochs, read_evaluations, read_object, read_steps
from lora_detr.records.run_directory import DATA_REPORT, RunDirectory

MAX_POINTS = 2000  # of a drawn curve: more than a picture has columns for

_USAGE_LABELS = dict(zip(USAGE, ("AP, NMS", "duplicates"), strict=True))

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunCurves:
    """What the logs of a run say. A value that is missing or not finite is NaN.

    Attributes:
        name: of the run directory.
        steps: [n], of the logged steps.
        loss: [n], the weighted total.
        gradient_norm: [n], before clipping.
        seconds: [n], of the step.
        rates: parameter group -> learning rates [n].
        primary: kind -> losses [n] of the primary path's last layer, before weighting.
        sources: ``primary``, branch or query group -> sums [n] over the kinds at the last layer, before weighting.
        epoch_ends: [e], last step of every epoch; the last epoch may have been cut short.
        evaluated: [v], steps of the evaluations.
        precision: ``AP``, ``AP50`` and ``AP75`` [v], in [0, 1]; NaN where there was nothing to measure.
        usage: AP with suppression and the duplicate rate [v], in [0, 1]; NaN where they are unknown.
        has_validation: false if the run has no validation split.
    """

    name: str
    steps: Values
    loss: Values
    gradient_norm: Values
    seconds: Values
    rates: Mapping[str, Values]
    primary: Mapping[str, Values]
    sources: Mapping[str, Values]
    epoch_ends: Values
    evaluated: Values
    precision: Mapping[str, Values]
    usage: Mapping[str, Values]
    has_validation: bool

    @property
    def last_step(self) -> float:
        """The last step that anything is known of."""
        return float(np.concatenate((self.steps, self.epoch_ends, self.evaluated)).max(initial=1.0))

    @property
    def best(self) -> int | None:
        """Index of the first evaluation with the highest AP; None if no AP is known."""
        precision = self.precision["AP"]
        return int(np.nanargmax(precision)) if np.isfinite(precision).any() else None


def write_results_picture(directory: RunDirectory) -> bool:
    """Draw everything worth watching into ``results.png``; return False if no step has been logged.

    Raises:
        OutputError: a log cannot be read, or the picture cannot be written.
    """
    curves = read_curves(directory)
    if curves is not None:
        write_file(directory.path / "results.png", draw_results(curves))
    return curves is not None


def write_loss_picture(directory: RunDirectory, path: Path) -> bool:
    """Draw the loss of every source beside AP into a PNG file; result and errors as of ``write_results_picture``."""
    curves = read_curves(directory)
    if curves is not None:
        write_file(path, draw_losses(curves))
    return curves is not None


def read_curves(directory: RunDirectory) -> RunCurves | None:
    """Read the logs of a run; return None if no step has been logged.

    Raises:
        OutputError: a file is there and the system refuses to read it.
    """
    logged = list(read_steps(directory.metrics))
    if not logged:
        return None
    last_layers = [{source: layers[max(layers)] for source, layers in one.terms.items()} for one in logged]
    results = list(read_evaluations(directory.results))
    report = read_object(directory.path / DATA_REPORT)
    return RunCurves(
        name=directory.path.resolve().name,
        steps=np.array([one.step for one in logged]),
        loss=np.array([one.loss for one in logged]),
        gradient_norm=np.array([one.gradient_norm for one in logged]),
        seconds=np.array([one.seconds for one in logged]),
        rates=_columns([one.rates for one in logged]),
        primary={kind: _column([found.get("primary", {}) for found in last_layers], kind) for kind in KINDS},
        sources=_columns([{name: sum(kinds.values()) for name, kinds in found.items()} for found in last_layers]),
        epoch_ends=np.array([one.step for one in read_epochs(directory.log) if math.isfinite(one.step)]),
        evaluated=_column(results, "step"),
        precision={name: _column(results, name) for name in ("AP", "AP50", "AP75")},
        usage={name: _column(results, name) for name in USAGE},
        has_validation=not report or "val" in report,
    )


def draw_results(curves: RunCurves) -> bytes:
    """Return a PNG picture of 1620 x 960 pixels: six panels by step; one without anything to show says why."""
    with in_style():
        figure = Figure(figsize=(10.8, 6.4), dpi=150, layout="constrained")
        panels = figure.subplots(2, 3)
        for axes, draw in zip(panels.flat, PANELS.values(), strict=True):
            draw(axes, curves)
            draw_steps(axes, curves, named_epochs=axes in panels[0])
        figure.suptitle(_title(curves), fontsize=12, fontweight="bold")
        figure.supxlabel(footnote(curves), fontsize=8, color=GREY)
        return encoded(figure)


def draw_losses(curves: RunCurves) -> bytes:
    """Return a PNG picture of 1600 x 620 pixels: the loss of every source beside AP; legible at half that size."""
    with in_style():
        figure = Figure(figsize=(8, 3.1), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(title="Loss of the last decoder layer", ylabel="class + L1 + GIoU, unweighted")
        _draw_curves(left, curves.steps, curves.sources)
        _draw_precision(right, curves)
        for axes in (left, right):
            draw_steps(axes, curves, named_epochs=True)
        return encoded(figure)


def _draw_total(axes: Axes, curves: RunCurves) -> None:
    axes.set(title="Total loss", ylabel="weighted sum of all terms")
    _draw_curves(axes, curves.steps, {"loss": curves.loss})


def _draw_kinds(axes: Axes, curves: RunCurves) -> None:
    axes.set(title="Primary path, last layer", ylabel="loss, unweighted")
    _draw_curves(axes, curves.steps, dict(zip(("class", "L1", "GIoU"), curves.primary.values(), strict=True)))


def _draw_sources(axes: Axes, curves: RunCurves) -> None:
    branches = [values for source, values in curves.sources.items() if source.startswith("branch")]
    groups = {name: values for name, values in curves.sources.items() if name != "primary" and "branch" not in name}
    title = "One-to-one and one-to-many loss" if branches or groups else "One-to-one loss (no branches)"
    axes.set(title=title, ylabel="last layer, unweighted sum")
    lines = {"one-to-one: primary": curves.sources.get("primary", np.empty(0))}
    if branches:
        lines[f"one-to-many: mean of {len(branches)}"] = np.mean(branches, axis=0)
    _draw_curves(axes, curves.steps, lines | groups)


def _draw_rates(axes: Axes, curves: RunCurves) -> None:
    axes.set(title="Learning rate", ylabel="learning rate")
    known = np.concatenate([np.empty(0), *(rates[rates > 0] for rates in curves.rates.values())])
    axes.yaxis.set_major_formatter("{x:.2g}")
    if known.size and known.max() > 9.99 * known.min():
        _make_logarithmic(axes)
    # Groups have no names; their peaks tell them apart, since the rules of the optimiser are given as scales.
    named = {f"{group}, at most {rate[rate > 0].max(initial=0.0):.2g}": rate for group, rate in curves.rates.items()}
    _draw_curves(axes, curves.steps, named, exact=True)


def _draw_gradient(axes: Axes, curves: RunCurves) -> None:
    axes.set(title="Gradient norm", ylabel="norm before clipping")
    if (curves.gradient_norm > 0).any():
        _make_logarithmic(axes)
    _draw_curves(axes, curves.steps, {"norm": curves.gradient_norm})


def _draw_precision(axes: Axes, curves: RunCurves) -> None:
    axes.set(title="COCO AP, validation", ylabel="average precision (0 to 1)", ylim=(0, 1))
    best = curves.best
    if best is None:
        reason = "nothing to measure" if curves.evaluated.size else "not evaluated yet"
        _say(axes, reason if curves.has_validation else "no validation split")
        return
    kept = _kept(curves.evaluated.size)
    marker = "o" if kept.size <= 30 else None
    for (name, values), colour in zip(curves.precision.items(), (BLUE, GREEN, PURPLE), strict=True):
        label, width = f"{name} {values[best]:.3f}", 2.0 if name == "AP" else 1.2
        axes.plot(curves.evaluated[kept], values[kept], color=colour, lw=width, marker=marker, ms=3.5, label=label)
    for (name, values), colour in zip(curves.usage.items(), (BLUE, GREY), strict=True):
        if np.isfinite(values).any():
            label = f"{_USAGE_LABELS[name]} {values[best]:.3f}"
            axes.plot(curves.evaluated[kept], values[kept], color=colour, lw=1.2, ls="--", label=label)
    step, top = curves.evaluated[best], np.nanmax([*curves.precision.values(), *curves.usage.values()])
    axes.plot(step, curves.precision["AP"][best], "*", color=BLUE, ms=13, markeredgecolor="white", zorder=4)
    # Room above the curves for the legend.
    axes.set_ylim(0, 1.7 * top + 0.01)
    axes.legend(
        loc="upper left",
        ncols=2,
        columnspacing=1.0,
        fontsize=8,
        title=f"best AP (star), step {step:,.0f}",
        alignment="left",
    )


def _draw_curves(axes: Axes, steps: Values, curves: Mapping[str, Values], *, exact: bool = False) -> None:
    """Draw each curve faint as it is and bold as a moving mean; ``exact`` ones, which have no noise, bold as they are.

    A curve without a finite value is left out; without any, the panel says so.
    """
    known = {label: values for label, values in curves.items() if np.isfinite(values).any()}
    if not known:
        _say(axes, "no finite value")
        return
    kept, window = _kept(steps.size), 1 if exact else _window(steps.size)
    marker = "o" if steps.size <= 10 else None
    shown: list[float] = []
    for i, (label, values) in enumerate(known.items()):
        colour, dashes = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--"
        smooth = _moving_mean(values, window)
        if window > 1:
            axes.plot(steps[kept], values[kept], color=colour, alpha=0.25, lw=0.7)
        axes.plot(steps[kept], smooth[kept], color=colour, ls=dashes, lw=1.8, marker=marker, ms=3.5, label=label)
        shown += [*np.nanpercentile(values, (1, 99)), np.nanmin(smooth), np.nanmax(smooth)]
    if axes.get_yscale() == "linear":
        # A wild step may leave the panel; the moving mean may not.
        margin = 0.06 * (max(shown) - min(shown)) or 0.06 * abs(max(shown)) or 0.06
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    if len(curves) > 1:
        axes.legend(loc="best")


PANELS: Mapping[str, Callable[[Axes, RunCurves], None]] = {
    "total": _draw_total,
    "precision": _draw_precision,
    "kinds": _draw_kinds,
    "sources": _draw_sources,
    "rates": _draw_rates,
    "gradient": _draw_gradient,
}
"""What is worth watching, in the order of ``results.png``; each draws one panel but for its horizontal axis."""


def draw_steps(axes: Axes, curves: RunCurves, *, named_epochs: bool) -> None:
    """Give a panel its horizontal axis: steps below, ends of epochs as light lines and, if wanted, above."""
    axes.set_xlabel("optimiser step")
    axes.set_xlim(0, 1.03 * curves.last_step)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    # At most ten of the epochs are marked.
    stride = max(1, -(-curves.epoch_ends.size // 10))
    ends = curves.epoch_ends[stride - 1 :: stride]
    for end in ends:
        axes.axvline(end, color=PALE, lw=0.8, zorder=0.5)
    if named_epochs and ends.size:
        above = axes.secondary_xaxis("top")
        labels = [f"epoch {stride}", *(str(stride * i) for i in range(2, ends.size + 1))]
        above.set_xticks(ends, labels, fontsize=7.5, color=GREY)
        above.tick_params(length=0, pad=1)
        above.spines["top"].set_visible(False)


def _make_logarithmic(axes: Axes) -> None:
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=11)
    axes.set_yticks([])


def _title(curves: RunCurves) -> str:
    # A dollar sign would begin a formula.
    name = curves.name if len(curves.name) <= 60 else f"{curves.name[:57]}..."
    text = f"{name}: {curves.last_step:,.0f} step{'s' if curves.last_step > 1 else ''}".replace("$", r"\$")
    if curves.best is None:
        return text
    return f"{text}, best AP {curves.precision['AP'][curves.best]:.3f} at step {curves.evaluated[curves.best]:,.0f}"


def footnote(curves: RunCurves) -> str:
    """Return what is to be known of all panels, in one line."""
    window = _window(curves.steps.size)
    parts = [f"faint: logged steps; bold: mean over {window} of them"] if window > 1 else []
    if np.isfinite(curves.seconds).any():
        parts.append(f"median of {np.nanmedian(curves.seconds):.3g} s per step")
    return "  |  ".join(parts)


def _window(count: int) -> int:
    return max(1, min(count // 12, 5 + count // 50))


def _moving_mean(values: Values, window: int) -> Values:
    """Average over ``window`` neighbours, fewer at both ends; NaN is left out, and stays where it was."""
    known, kernel = np.isfinite(values), np.ones(window)
    sums = np.convolve(np.where(known, values, 0.0), kernel, "same")
    counts = np.convolve(known, kernel, "same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def _kept(count: int) -> NDArray[np.int64]:
    """Return at most ``MAX_POINTS`` evenly spread indices, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(np.int64)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> Values:
    return np.array([row.get(name, math.nan) for row in rows])


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Values]:
    return {name: _column(rows, name) for name in dict.fromkeys(name for row in rows for name in row)}
