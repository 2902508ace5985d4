"""What a step of each row costs, measured on a small table, and reported beside the published minutes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from lora_detr.experiments.cost import cost
from lora_detr.experiments.cost.cost import CostStudy, RowCost, cost_table, measure, usual_inputs, write_cost
from lora_detr.experiments.cost.synthetic_workload import Inputs
from lora_detr.experiments.tables.table import find_table, read_table
from tests.small_runs import SMALL

TABLE = f"""
title: "Small: cost"
source: made up
measures: cost
rows:
  - name: none
    label: no branch
    options: {{preset: "{SMALL}", aux: 0}}
    published: {{parameters: 47.3}}
  - name: three
    label: three branches
    options: {{preset: "{SMALL}"}}
    published: {{parameters: 49.9, minutes: 53}}
"""


@pytest.fixture
def study(tmp_path: Path) -> CostStudy:
    path = tmp_path / "small.yaml"
    path.write_text(TABLE, encoding="utf-8")
    info = read_table(path)
    return CostStudy(info, "paper", tuple(info.table.at("paper")), Inputs((64, 64), 2, 3), rounds=2)


@pytest.mark.slow
def test_steps_are_timed_in_turn_and_memory_is_taken_in_processes_of_their_own(study: CostStudy) -> None:
    lines: list[str] = []
    none, three = measure(study, lines.append)
    assert lines[:2] == ["built no branch", "built three branches"]
    assert (none.ratio, none.lowest, none.highest, none.memory_ratio) == (1.0, 1.0, 1.0, 1.0)
    assert three.lowest <= three.ratio <= three.highest
    assert none.memory_mb is not None and three.memory_mb is not None
    assert 1 < none.memory_mb < 500
    # Two matrices of rank 4 for each of two linear layers of width 32 and 64, two decoder layers, three branches.
    assert three.parameters - none.parameters == pytest.approx(3 * 2 * 2 * 4 * (32 + 64) / 1e6)


def test_the_report_calls_nothing_comparable(study: CostStudy, tmp_path: Path) -> None:
    costs = [
        RowCost("none", 2.0, 1.0, 1.0, 1.0, 100.0, 1.0, 4.98),
        RowCost("three", 2.2, 1.1, 1.05, 1.2, 110.0, 1.1, 5.35),
    ]
    head, cells = cost_table(study, costs)
    assert dict(zip(head, cells[1], strict=True)) == {
        "row": "three branches",
        "*published* minutes": "53",
        "step time": "1.10",
        "lowest to highest": "1.05 to 1.20",
        "memory": "1.10",
        "*published* parameters": "49.9 M",
        "parameters": "5.35 M",
    }
    written = write_cost(study, costs, tmp_path / "out", "loradetr ablate run table6")
    assert [path.name for path in written] == ["report.md", "report.csv", "cost.json"]
    text = written[0].read_text(encoding="utf-8")
    assert "**Not comparable with the published minutes:**" in text
    assert "Measured by `loradetr ablate run table6`: 2 images of 64x64, 2 rounds" in text
    rows = list(csv.DictReader(io.StringIO(written[1].read_text(encoding="utf-8"))))
    assert (rows[1]["label"], rows[1]["ratio"], rows[1]["published_minutes"]) == ("three branches", "1.1", "53.0")
    content = json.loads(written[2].read_text(encoding="utf-8"))
    assert content["rows"][0]["memory_mb"] == 100.0
    assert content["environment"]["device"] == "cpu"


def test_memory_that_the_system_does_not_tell_is_left_open(study: CostStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "megabytes_alone", lambda script, options: None)
    costs = measure(study, lambda text: None)
    assert [one.memory_ratio for one in costs] == [None, None]
    assert cost_table(study, costs)[1][0][4] == "-"


def test_images_are_those_of_the_scale() -> None:
    assert usual_inputs("tiny", "cpu").size == (256, 256)
    assert (usual_inputs("paper", "cpu").size, usual_inputs("paper", "cpu").batch) == ((480, 640), 1)
    assert (usual_inputs("paper", "cuda").size, usual_inputs("paper", "cuda").batch) == ((800, 1216), 2)


def test_only_the_table_of_cost_is_timed() -> None:
    assert find_table("table6").table.measures == "cost"
    assert find_table("table1").table.measures == "accuracy"
