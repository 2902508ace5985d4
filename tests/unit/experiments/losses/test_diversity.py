"""What runs wrote about their branches, one by one and compared with others."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_detr.experiments.losses.analysis import analyse
from lora_detr.experiments.losses.diversity import diversity_as_csv, diversity_as_markdown
from lora_detr.records.diversity import DiversityLog, condensed, read_diversity
from tests.unit.experiments.losses.test_logs import write_ours

BRANCHES = ("branch0", "branch1")


def record(step: int, overlap: float | None, positives: float) -> dict[str, Any]:
    """Return a line of two layers and two branches; the second branch has half of the first one's positives."""
    return {
        "step": step,
        "jaccard": {
            "primary|branch0": [0.2, 0.4],
            "primary|branch1": [0.6, 0.8],
            "branch0|branch1": [overlap, overlap],
        },
        "positives": {"primary": [1.0, 1.0], "branch0": [positives, positives], "branch1": [positives / 2] * 2},
        "uncovered": {"primary": [0.0, 0.0], "branch0": [0.1, 0.3], "branch1": [0.3, 0.5]},
        "cosine": {name: [0.5, 0.5] for name in BRANCHES},
        "cosine_all": {"branch0": 0.25, "branch1": 0.75},
        "norm_ratio": {"branch0": 1.0, "branch1": 3.0},
    }


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    write_ours(folder)
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "diagnostics.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def log(tmp_path: Path) -> DiversityLog:
    found = read_diversity(write(tmp_path / "run", [record(10, None, 2.0), record(20, 0.5, 4.0)]), "mine")
    assert found is not None
    return found


def test_layers_are_averaged_and_what_is_undefined_stays_so(log: DiversityLog) -> None:
    assert log.steps.tolist() == [10, 20]
    np.testing.assert_allclose(log.curves["jaccard"]["primary|branch0"], [0.3, 0.3])
    np.testing.assert_allclose(log.curves["jaccard"]["branch0|branch1"], [math.nan, 0.5])
    assert "primary" in log.curves["positives"]


def test_branches_are_averaged_without_the_primary_path(log: DiversityLog) -> None:
    brief = condensed(log)
    assert {measure: list(curves) for measure, curves in brief.curves.items()} == {
        "jaccard": ["branches and primary", "two branches"],
        "positives": ["branches"],
        "uncovered": ["branches"],
        "cosine_all": ["branches"],
        "norm_ratio": ["branches"],
    }
    np.testing.assert_allclose(brief.curves["jaccard"]["branches and primary"], [0.5, 0.5])
    np.testing.assert_allclose(brief.curves["jaccard"]["two branches"], [math.nan, 0.5])
    np.testing.assert_allclose(brief.curves["positives"]["branches"], [1.5, 3.0])
    np.testing.assert_allclose(brief.curves["uncovered"]["branches"], [0.3, 0.3])
    np.testing.assert_allclose(brief.curves["norm_ratio"]["branches"], [2.0, 2.0])


def test_the_table_has_means_over_the_second_half(log: DiversityLog) -> None:
    text = diversity_as_markdown([condensed(log)])
    assert "| mine | branches and primary | 0.500 | - | - | - | - |" in text
    assert "| mine | branches | - | 2.250 | 0.300 | 0.500 | 2.000 |" in text


def test_the_csv_leaves_out_what_is_undefined(log: DiversityLog) -> None:
    rows = list(csv.DictReader(io.StringIO(diversity_as_csv([log]))))
    own = [row for row in rows if row["of"] == "branch0|branch1"]
    assert [(row["step"], row["measure"], row["value"]) for row in own] == [("20", "jaccard", "0.5")]


def test_one_label_is_told_branch_by_branch_and_several_are_compared(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, [record(10, 0.5, 2.0), record(20, 0.5, 4.0)]) for name in ("a", "b")]
    wanted: dict[str, Any] = {"layer": None, "smooth": 1.0, "loss": None, "precision": None}
    alone = analyse([f"mine={run}" for run in runs], folder=tmp_path / "alone", **wanted)
    assert any("| mine | branch0 |" in line for line in alone)
    several = analyse(
        [f"{name}={run}" for name, run in zip("ab", runs, strict=True)], folder=tmp_path / "two", **wanted
    )
    assert not any("branch0 |" in line for line in several)
    assert any("| b | two branches | 0.500 |" in line for line in several)
    summary = (tmp_path / "two" / "summary.md").read_text(encoding="utf-8")
    assert "One by one:" in summary
    assert "| b | branch0 |" in summary
    drawn = (tmp_path / "two" / "diversity.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")


def test_a_run_without_diagnostics_has_none(tmp_path: Path) -> None:
    assert read_diversity(write_ours(tmp_path / "run"), "mine") is None
