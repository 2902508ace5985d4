"""Tests of the pictures of a run: what is read from its logs, what stands in the panels, what a picture costs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lora_detr.errors import OutputError
from lora_detr.records import plots
from lora_detr.records.run_directory import RunDirectory

Drawn = Callable[[RunDirectory], list[Axes]]


def record(step: int, **changes: object) -> dict[str, object]:
    """Return the line of a step of a run with two layers and two branches; its loss is the step."""
    sources = {"primary": 1.0, "branch0": 10.0, "branch1": 30.0}
    terms = {f"{name}/layer0/{kind}": 99.0 for name in sources for kind in ("class", "l1", "giou")}
    terms |= {f"{name}/layer1/class": size for name, size in sources.items()}
    terms |= {f"{name}/layer1/l1": 2 * size for name, size in sources.items()}
    terms |= {f"{name}/layer1/giou": 3 * size for name, size in sources.items()}
    line = {"step": step, "epoch": 0, "loss": float(step), "gradient_norm": 2.0 * step, "seconds": 0.5}
    return {**line, "lr": {"group0": 1e-4, "group1": 5e-5}, "terms": {**terms, "encoder/class": 7.0}, **changes}


def write_run(
    folder: Path,
    steps: list[dict[str, object]],
    epoch_ends: tuple[int, ...] = (),
    results: Mapping[int, float] | None = None,
    validation: bool = True,
) -> RunDirectory:
    """Write the logs of a run; ``results`` are AP by step, AP50 is twice and AP75 once and a half as high."""
    directory = RunDirectory(folder)
    folder.mkdir(exist_ok=True)
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in steps), encoding="utf-8")
    ends = [{"epoch": epoch, "step": step} for epoch, step in enumerate(epoch_ends)]
    directory.log.write_text("".join(json.dumps(line) + "\n" for line in ends), encoding="utf-8")
    if results is not None:
        rows = [f"1,{step},{ap},{2 * ap},{1.5 * ap}\r\n" for step, ap in results.items()]
        directory.results.write_text("epoch,step,AP,AP50,AP75\r\n" + "".join(rows), encoding="utf-8")
    directory.write_json("data_report.json", {"train": {}, "val": {}} if validation else {"train": {}})
    return directory


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Return a function that gives the panels of ``results.png`` instead of its pixels."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "encoded", lambda figure: figures.append(figure) or b"")

    def panels(directory: RunDirectory) -> list[Axes]:
        curves = plots.read_curves(directory)
        assert curves is not None
        plots.draw_results(curves)
        return figures[-1].axes

    return panels


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def said(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def bold(axes: Axes) -> list[np.ndarray]:
    """Return the heights of the curves that are not faint and not the line of an epoch."""
    lines = [line for line in axes.lines if line.get_alpha() is None and len(line.get_xdata()) != 2]
    return [np.asarray(line.get_ydata()) for line in lines]


def test_a_trained_run_gets_its_picture(own_run: Path) -> None:
    picture = own_run / "results.png"
    picture.unlink(missing_ok=True)
    assert plots.write_results_picture(RunDirectory(own_run))
    assert Image.open(picture).size == (1620, 960)
    assert picture.stat().st_size > 20_000
    curves = plots.read_curves(RunDirectory(own_run))
    assert curves is not None
    assert [*curves.steps] == [*range(1, 13)]
    assert list(curves.sources) == ["primary", "branch0", "branch1", "branch2"]
    assert all(np.isfinite(values).all() for values in (*curves.primary.values(), *curves.rates.values()))
    assert curves.has_validation and [*curves.epoch_ends] == [*curves.evaluated] == [6, 12]


def test_a_noisy_run_needs_little_room_and_changes_no_setting(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).lognormal(size=(500, 2))
    steps = [record(step, loss=loss, gradient_norm=norm) for step, (loss, norm) in enumerate(noise, 1)]
    directory = write_run(tmp_path / "run", steps, (250, 500), {250: 0.2, 500: 0.3})
    assert plots.write_results_picture(directory)
    expected = (directory.path / "results.png").read_bytes()
    assert len(expected) < 200_000
    with matplotlib.rc_context({"font.size": 5.0, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert plots.write_results_picture(directory)
        assert dict(matplotlib.rcParams) == before
    assert (directory.path / "results.png").read_bytes() == expected


def test_the_small_picture_fits_a_page(own_run: Path, tmp_path: Path) -> None:
    assert plots.write_loss_picture(RunDirectory(own_run), tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (1600, 620)


def test_curves_are_of_the_last_layer(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", [record(10), record(20)], (10, 20), {10: 0.2, 20: 0.25})
    curves = plots.read_curves(directory)
    assert curves is not None
    assert curves.name == "run" and curves.last_step == 20
    assert [*curves.loss] == [10, 20] and [*curves.gradient_norm] == [20, 40] and [*curves.seconds] == [0.5, 0.5]
    assert {kind: values[0] for kind, values in curves.primary.items()} == {"class": 1, "l1": 2, "giou": 3}
    assert {source: values[1] for source, values in curves.sources.items()} == {
        "primary": 6,
        "branch0": 60,
        "branch1": 180,
    }
    assert {group: rates[0] for group, rates in curves.rates.items()} == {"group0": 1e-4, "group1": 5e-5}
    assert {name: values[1] for name, values in curves.precision.items()} == {"AP": 0.25, "AP50": 0.5, "AP75": 0.375}
    assert curves.best == 1


def test_lines_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", [record(1), record(2)], (1, 2), {1: 0.1, 2: 0.2})
    wrong = ["[1]", "{", '{"loss": 3.0}', json.dumps(record(3, terms=[])), json.dumps(record(4, lr=None)), "\x00"]
    for path in (directory.metrics, directory.log):
        with path.open("a", encoding="utf-8") as file:
            # The last line has no end: its process was killed while writing.
            file.write("\n".join(wrong) + "\n" + json.dumps(record(5)))
    with directory.results.open("a", encoding="utf-8") as file:
        file.write("epoch,step,AP,AP50,AP75\r\n,,\r\n1,3,0.4,0.8,0.")
    curves = plots.read_curves(directory)
    assert curves is not None
    assert [*curves.steps] == [*curves.evaluated] == [1, 2]
    # An epoch has neither terms nor rates that could be wrong.
    assert [*curves.epoch_ends] == [1, 2]
    assert curves.best == 1


def test_what_is_not_finite_or_minus_one_is_unknown(tmp_path: Path) -> None:
    steps = [record(1, loss=math.nan, gradient_norm=math.inf), record(2, seconds="slow")]
    curves = plots.read_curves(write_run(tmp_path / "run", steps, (), {1: -1.0, 2: 0.3, 3: 0.3}))
    assert curves is not None
    np.testing.assert_array_equal(curves.loss, [math.nan, 2])
    np.testing.assert_array_equal(curves.gradient_norm, [math.nan, 4])
    np.testing.assert_array_equal(curves.seconds, [0.5, math.nan])
    np.testing.assert_array_equal(curves.precision["AP"], [math.nan, 0.3, 0.3])
    assert curves.best == 1  # the first of two equal ones, which is the one that was kept


def test_without_a_logged_step_there_is_no_picture(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert not plots.write_results_picture(directory)
    assert not plots.write_loss_picture(directory, tmp_path / "loss.png")
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_refuses_is_an_output_error(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", [record(1)])
    with pytest.raises(OutputError, match=r"absent.*cannot be written"):
        plots.write_loss_picture(directory, tmp_path / "absent" / "loss.png")
    directory.results.mkdir()
    with pytest.raises(OutputError, match=r"results\.csv: cannot be read"):
        plots.write_results_picture(directory)


def test_panels_show_what_their_titles_say(tmp_path: Path, drawn: Drawn) -> None:
    steps = [record(step) for step in range(1, 6)]
    directory = write_run(tmp_path / "run", steps, (3, 5), {3: 0.3, 5: -1.0})
    total, precision, kinds, sources, rates, gradient = drawn(directory)
    assert [[*values] for values in bold(total)] == [[1, 2, 3, 4, 5]]
    assert [[*values] for values in bold(kinds)] == [[1] * 5, [2] * 5, [3] * 5]
    assert labels(kinds) == ["class", "L1", "GIoU"]
    assert [[*values] for values in bold(sources)] == [[6] * 5, [120] * 5]
    assert labels(sources) == ["one-to-one: primary", "one-to-many: mean of 2"]
    assert "unweighted" in kinds.get_ylabel() and "unweighted" in sources.get_ylabel()
    assert [[*values] for values in bold(rates)] == [[1e-4] * 5, [5e-5] * 5]
    assert (rates.get_yscale(), gradient.get_yscale()) == ("linear", "log")
    assert labels(precision) == ["AP 0.300", "AP50 0.600", "AP75 0.450"]
    assert precision.get_ylim() == pytest.approx((0, 1.03))  # seven tenths and a hundredth above the highest AP50
    star = precision.lines[3]
    assert (star.get_marker(), [*star.get_xdata()], [*star.get_ydata()]) == ("*", [3], [0.3])
    above = total.child_axes[0]
    assert [*above.get_xticks()] == [3, 5]
    assert [label.get_text() for label in above.get_xticklabels()] == ["epoch 1", "2"]
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left") for axes in total.figure.axes)
    title = total.figure.get_suptitle()
    assert title == "run: 5 steps, best AP 0.300 at step 3"


def test_rates_over_a_decade_are_shown_by_their_logarithm(tmp_path: Path, drawn: Drawn) -> None:
    steps = [record(1, lr={"group0": 0.0}), record(2, lr={"group0": 1e-3}), record(3, lr={"group0": 1e-4})]
    rates = drawn(write_run(tmp_path / "run", steps))[4]
    assert rates.get_yscale() == "log"
    assert labels(rates) == []


@pytest.mark.parametrize(
    ("results", "validation", "reason"),
    [
        (None, False, "no validation split"),
        (None, True, "not evaluated yet"),
        ({1: -1.0}, True, "nothing to measure"),
    ],
)
def test_a_panel_without_ap_says_why(
    tmp_path: Path, drawn: Drawn, results: dict[int, float] | None, validation: bool, reason: str
) -> None:
    precision = drawn(write_run(tmp_path / "run", [record(1)], (1,), results, validation))[1]
    assert said(precision) == [reason]


def test_without_branches_there_is_nothing_to_compare(tmp_path: Path, drawn: Drawn) -> None:
    terms = {f"primary/layer0/{kind}": 1.0 for kind in ("class", "l1", "giou")}
    sources = drawn(write_run(tmp_path / "run", [record(step, terms=terms) for step in range(1, 5)]))[3]
    assert [[*values] for values in bold(sources)] == [[3] * 4]
    assert "no branches" in sources.get_title(loc="left")


def test_a_long_run_is_thinned_and_its_epochs_too(tmp_path: Path, drawn: Drawn) -> None:
    steps = [record(step) for step in range(1, 5001)]
    ends = tuple(range(100, 5001, 100))
    panels = drawn(write_run(tmp_path / "run", steps, ends, dict.fromkeys(ends, 0.3)))
    total = panels[0]
    faint = next(line for line in total.lines if line.get_alpha() is not None)
    assert all(len(line.get_xdata()) <= plots.MAX_POINTS for axes in panels for line in axes.lines)
    assert (len(faint.get_xdata()), faint.get_xdata()[0], faint.get_xdata()[-1]) == (plots.MAX_POINTS, 1, 5000)
    assert [*total.child_axes[0].get_xticks()] == [*range(500, 5001, 500)]
    assert total.child_axes[0].get_xticklabels()[1].get_text() == "10"


def test_a_wild_step_leaves_the_panel_and_its_mean_stays(tmp_path: Path, drawn: Drawn) -> None:
    steps = [record(step, loss=100.0 if step == 400 else 2.0) for step in range(1, 1001)]
    total = drawn(write_run(tmp_path / "run", steps))[0]
    assert bold(total)[0].max() < total.get_ylim()[1] < 10


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_a_moving_mean_leaves_out_what_is_unknown(window: int) -> None:
    values = np.array([1.0, 2.0, math.nan, 7.0, 4.0, 10.0, math.nan, 3.0])
    found = plots._moving_mean(values, window)
    for i, mean in enumerate(found):
        near = [values[j] for j in range(len(values)) if i - window // 2 <= j <= i + (window - 1) // 2]
        assert mean == pytest.approx(np.nanmean(near)) if np.isfinite(values[i]) else np.isnan(mean)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "steps",
    [
        [record(1)],
        [record(1), record(2)],
        [record(1, loss=math.nan, gradient_norm=math.inf, lr={}, terms={}, seconds=None)],
        [{"step": step} for step in range(40)],
        [record(step, gradient_norm=0.0, lr={"group0": 0.0}) for step in range(40)],
    ],
    ids=["one", "two", "nothing-finite", "steps-alone", "zeros"],
)
def test_poor_logs_are_drawn_too(tmp_path: Path, steps: list[dict[str, object]]) -> None:
    # A folder may have any name: with what would be a formula, and with letters that the font lacks.
    directory = write_run(tmp_path / "a $x_$ \u540d", steps, (1,), {1: 0.0, 2: -1.0})
    assert plots.write_results_picture(directory)
    assert Image.open(io.BytesIO((directory.path / "results.png").read_bytes())).size == (1620, 960)
