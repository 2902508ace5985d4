"""Curves over seeds, and when they reach a level."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from lora_detr.errors import ConfigError
from lora_detr.experiments.losses.analysis import analyse
from lora_detr.experiments.losses.curves import (
    ahead_text,
    band,
    convergence,
    convergence_as_markdown,
    curves_as_csv,
    over_seeds,
    reached_text,
    smoothed,
)
from lora_detr.experiments.losses.logs import LossLog, Values
from lora_detr.losses.report import KINDS
from tests.unit.experiments.losses.test_logs import write_ours, write_theirs


def log_of(label: str, values: list[float], precision: list[float] | None = None) -> LossLog:
    """Return a run of one layer whose three terms are a third of the given totals, a point an epoch."""
    epochs = np.arange(1.0, len(values) + 1)
    seen = np.array(precision or [])
    return LossLog(label, epochs, {(0, kind): np.array(values) / 3 for kind in KINDS}, epochs[: seen.size], seen)


def total(log: LossLog) -> Values:
    return log.total()


def test_smoothing_keeps_a_line_and_leaves_out_what_is_not_known() -> None:
    epochs = np.arange(0.0, 10.0, 0.5)
    np.testing.assert_allclose(smoothed(epochs, 3 - epochs, 2.0)[2:-2], (3 - epochs)[2:-2])
    values = np.ones(20)
    values[5] = math.nan
    np.testing.assert_allclose(smoothed(epochs, values, 2.0), 1.0)
    np.testing.assert_allclose(smoothed(epochs, values, 0.0), values)
    middle = smoothed(np.arange(5.0), np.array([0.0, 0.0, 5.0, 0.0, 0.0]), 2.0)
    np.testing.assert_allclose(middle, [0, 5 / 3, 5 / 3, 5 / 3, 0])
    ends = smoothed(np.arange(4.0), np.array([4.0, 2.0, 2.0, 6.0]), 2.0)
    np.testing.assert_allclose(ends, [3, 8 / 3, 10 / 3, 4])


def test_a_band_covers_what_all_seeds_reach() -> None:
    found = band("a", [log_of("a", [4, 3, 2, 1]), log_of("a", [6, 5, 4])], total, 0.0)
    np.testing.assert_allclose(found.epochs[[0, -1]], [1, 3])
    np.testing.assert_allclose(found.seeds[:, 0], [4, 6])
    np.testing.assert_allclose(found.mean[[0, -1]], [5, 3])


def test_a_curve_that_is_never_known_stays_so() -> None:
    places = np.arange(3.0)
    found = over_seeds("a", [(places, np.full(3, math.nan))])
    assert np.isnan(found.seeds).all()


def test_levels_are_the_first_labels_end_unless_given() -> None:
    logs = [
        log_of("base", [8, 6, 5, 4], [0.1, 0.2, 0.3, 0.4]),
        log_of("fast", [8, 4, 3, 2], [0.2, 0.4, 0.5, 0.5]),
        log_of("fast", [8, 7, 6, 5], [0.0, 0.1, 0.2, 0.3]),
    ]
    (base, fast), loss, precision = convergence(logs, total, 0.0)
    assert (loss, precision) == (4.0, 0.4)
    assert (base.loss_epochs, base.precision_epochs) == ((4.0,), (4.0,))
    assert (fast.loss_epochs, fast.precision_epochs) == ((2.0, None), (2.0, None))
    assert (fast.seeds, fast.final_loss, fast.final_precision) == (2, 3.5, (0.5, 0.3))
    text = convergence_as_markdown([base, fast], loss, precision, "loss")
    assert "| fast | 2 | 3.5 | 2.0 (1 of 2 runs) | 0.400 | 2.0 (1 of 2 runs) | 2, 3 of 4 |" in text
    assert text.rstrip().splitlines()[2].endswith("| 4.0 | - |")
    (_, other), loss, _ = convergence(logs, total, 0.0, loss_level=7.5, precision_level=0.9)
    assert (loss, other.loss_epochs, other.precision_epochs) == (7.5, (2.0, 2.0), (None, None))


@pytest.mark.parametrize(
    ("precision", "text"),
    [([0.2, 0.3, 0.4], "all 3"), ([0.1, 0.2, 0.3], "none"), ([0.0, 0.3], "2 of 2"), ([0.2, 0.1, 0.4], "1, 3 of 3")],
)
def test_where_the_curves_of_ap_cross(precision: list[float], text: str) -> None:
    """At every evaluation that both have; equality is not ahead."""
    logs = [log_of("base", [3, 2, 1], [0.1, 0.2, 0.3]), log_of("own", [3, 2, 1], precision)]
    (_, own), _, _ = convergence(logs, total, 0.0)
    assert ahead_text(own) == text


def test_runs_that_were_never_evaluated_together_are_not_compared() -> None:
    (_, own), _, _ = convergence([log_of("base", [3, 2], [0.1]), log_of("own", [3, 2])], total, 0.0)
    assert (own.ahead, own.compared, ahead_text(own)) == ((), 0, "-")


def test_without_an_evaluation_there_is_no_column_of_ap() -> None:
    found, loss, precision = convergence([log_of("base", [2, 1])], total, 0.0)
    assert math.isnan(precision)
    assert "AP" not in convergence_as_markdown(found, loss, precision, "loss")
    assert reached_text([None, None]) == "not reached"


def test_the_csv_has_every_point_of_every_run() -> None:
    rows = list(csv.DictReader(io.StringIO(curves_as_csv([log_of("a", [3, 6]), log_of("a", [9, math.nan])]))))
    assert [(row["label"], row["run"], row["epoch"], row["total"]) for row in rows] == [
        ("a", "0", "1.0000", "3"),
        ("a", "0", "2.0000", "6"),
        ("a", "1", "1.0000", "9"),
        ("a", "1", "2.0000", ""),
    ]
    assert rows[0]["layer0_giou"] == "1"


def test_everything_is_written_and_drawn_alike_each_time(tmp_path: Path) -> None:
    runs = [f"mine={write_ours(tmp_path / name)}" for name in ("a", "b")]
    wanted = {"layer": None, "smooth": 1.0, "loss": None, "precision": None}
    for name in ("first", "second"):
        lines = analyse(runs, folder=tmp_path / name, **wanted)  # type: ignore[arg-type]
        assert "| mine | 2 |" in lines[0]
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["losses.csv", "losses.png", "losses.svg", "summary.md"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_logs_of_others_are_analysed_beside_ours_and_alone(tmp_path: Path) -> None:
    theirs = str(write_theirs(tmp_path / "theirs"))
    for runs in ([theirs], [str(write_ours(tmp_path / "mine")), theirs]):
        lines = analyse(runs, layer=None, smooth=0.0, loss=None, precision=None, folder=tmp_path / "out")
        assert "| theirs | 1 | 15 | " in "".join(lines), lines


def test_a_layer_that_there_is_not_is_refused(tmp_path: Path) -> None:
    run = str(write_ours(tmp_path / "a"))
    with pytest.raises(ConfigError, match="--layer 2: the runs have 2 decoder layers"):
        analyse([run], layer=2, smooth=0.0, loss=None, precision=None, folder=tmp_path / "out")


def test_totals_of_unlike_losses_are_not_compared_silently(tmp_path: Path) -> None:
    first, second = (write_ours(tmp_path / name) for name in ("a", "b"))
    settings = (second / "config.yaml").read_text(encoding="utf-8")
    assert "    classification: quality" in settings
    (second / "config.yaml").write_text(settings.replace("classification: quality", "classification: focal", 1))
    lines = analyse([str(first), str(second)], layer=-1, smooth=0.0, loss=None, precision=None, folder=tmp_path / "out")
    assert "Classification losses differ (a: quality x1; b: focal x1)" in lines[0]
