"""Training on real photographs, where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.small_runs import SMALL


@pytest.fixture
def bccd(real_data: Path) -> Path:
    """The blood cell set, which has two boxes without width or height."""
    path = real_data / "bccd"
    if not path.is_dir():
        pytest.skip(f"no blood cell data at {path}")
    return path


def test_two_steps_on_blood_cells_report_the_boxes_that_have_no_size(loradetr: Command, bccd: Path) -> None:
    few = ("--max-steps", 2, "--set", "data.path=" + str(bccd), "--output-dir", "run")
    ended = loradetr("train", "--preset", SMALL, *few)
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(Path("run/data_report.json").read_text())
    dropped = {split: report[split]["zero_size"] for split in ("train", "val")}
    assert sum(dropped.values()) == 2
    said = [line.split()[0] for line in ended.out.splitlines() if "boxes without width or height: dropped" in line]
    assert said == [str(count) for count in dropped.values() if count]
    assert "classes     3: " in ended.out
    assert json.loads(Path("run/exit.json").read_text())["code"] == 0
