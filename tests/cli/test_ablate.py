"""``loradetr ablate`` and ``analyze-loss``, as they are typed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_told
from tests.small_runs import SMALL

TABLE = f"""
title: "Small: without and with branches"
source: made up
answers: [{{name: primary}}, {{name: branch with NMS, branch: 0, nms: 0.7}}]
rows:
  - name: one
    label: one branch
    options: {{preset: "{SMALL}", aux: 1}}
    published: {{AP: 43.7, parameters: 47.3}}
  - name: three
    label: three branches
    options: {{preset: "{SMALL}"}}
    published: {{AP: 49.0}}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_the_tables_are_listed(loradetr: Command) -> None:
    ended = loradetr("ablate", "list")
    assert ended.code == 0
    assert {line.split()[0] for line in ended.out.splitlines()[1:]} >= {
        "table1",
        "table2",
        "table5",
        "table6",
        "table7",
    }


def test_a_dry_run_needs_no_data_and_shows_both_counts(loradetr: Command) -> None:
    ended = loradetr("ablate", "diversity", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    (row,) = [line for line in ended.out.splitlines() if line.strip().startswith("tau")]
    assert row.split()[-4:] == ["66.19", "M", "66.2", "M"]
    assert not list(Path().iterdir())
    small = loradetr("ablate", "diversity", "--dry-run", "--scale", "tiny").out
    assert "not comparable with the published" in small


@pytest.mark.slow
def test_a_table_is_run_reported_and_analysed(loradetr: Command, table: Path, shapes_tiny: Path) -> None:
    told = ("--data", shapes_tiny, "--seeds", "3", "--max-steps", "2", "--jobs", "2", "--output-dir", "out")
    ended = loradetr("ablate", table, *told, "--set", "train.diagnostics=1")
    assert (ended.code, ended.err) == (0, ""), ended.out
    assert "2 runs, 2 at a time, in out" in ended.out
    report = Path("out/report.md").read_text(encoding="utf-8")
    assert "**Not comparable with the published figures:** 2 steps instead of the presets' epochs" in report
    assert Path("out/report.png").is_file()
    with Path("out/report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"], row["done"]) for row in rows] == [("one", "3", "1"), ("three", "3", "1")]
    run = json.loads(Path("out/answers/three-seed3-1.json").read_text(encoding="utf-8"))
    assert float(rows[1]["AP, branch with NMS"]) == pytest.approx(100 * run["AP"], abs=1e-4)

    again = loradetr("ablate", "report", "out")
    assert again.code == 0
    assert Path("out/report.md").read_text(encoding="utf-8") == report
    shown = loradetr("ablate", "report", "out", "--against", "three")
    assert (shown.code, "against" in shown.out, "wrote" in shown.out) == (0, True, False)
    assert Path("out/report.md").read_text(encoding="utf-8") == report
    assert_told(loradetr("ablate", "report", "out", "--against", "two"), 2, ("--against two: no such row",))

    other = loradetr("ablate", table, *told, "--set", "train.batch_size=1")
    assert_told(other, 2, ("out: holds a study with other settings",))

    found = loradetr("analyze-loss", "out", "--output-dir", "losses")
    assert (found.code, found.err) == (0, "")
    assert "| three branches | 1 |" in found.out
    assert "| three branches | two branches |" in found.out
    assert "branch0 and branch1" in Path("losses/summary.md").read_text(encoding="utf-8")
    by_epoch = loradetr("analyze-loss", "out/one", "out/three", "--by", "epoch", "--output-dir", "epochs")
    assert (by_epoch.code, by_epoch.err, "| three branches | 1 |" in by_epoch.out) == (0, "", True), by_epoch.err
    names = {path.name for path in Path("losses").iterdir()}
    assert names == {
        *(f"{what}{suffix}" for what in ("losses", "diversity") for suffix in (".png", ".svg", ".csv")),
        "summary.md",
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("tabel1",), ("unknown table 'tabel1'", "table1")),
        (("table1", "--scale", "small"), ("--scale small: expected paper or tiny",)),
        (("table1", "--rows", "z"), ("--rows z: no such row at --scale paper", "known: a, b1")),
        (("table1",), ("no --data and no data/coco", "--dry-run needs none")),
        (("table1", "--scale", "tiny", "--data", "nowhere"), ("--data nowhere: does not exist",)),
        (("table1", "--scale", "tiny", "--data", ".", "--seeds", "a"), ("--seeds a: expected whole numbers",)),
        (("table1", "--data", ".", "--seeds=-1"), ("--seeds -1: expected 0 or more",)),
        (("table1", "--data", ".", "--rounds", "3"), ("--rounds: table table1 is trained, not timed",)),
        (("table6", "--seeds", "0,1", "--max-steps", "3"), ("--max-steps, --seeds: this table times steps",)),
        (("report", "table1"), ("no such folder, and none in runs/ablations",)),
        (("report", "."), ("study.json is missing",)),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: tuple[str, ...], parts: tuple[str, ...], loradetr: Command) -> None:
    assert_told(loradetr("ablate", *arguments), 2, parts)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("nowhere",), ("nowhere: does not exist",)),
        (("x=nowhere",), ("nowhere: does not exist",)),
        ((".",), ("contains neither metrics.jsonl nor log.txt",)),
        ((".", "--by", "batch"), ("--by batch: expected step or epoch",)),
        ((".", "--layer", "top"), ("--layer top: expected all, last or the number of a layer",)),
    ],
)
def test_runs_that_cannot_be_analysed_are_named(
    arguments: tuple[str, ...], parts: tuple[str, ...], loradetr: Command
) -> None:
    assert_told(loradetr("analyze-loss", *arguments), 2, parts)
