"""A measurement of accuracy after a time trains for that time, and evaluates all alike."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy
from tests.small_runs import REDUCED

# Names of fields of a row that are measured, with the least and the greatest they may be.
SHARES = {"AP": (-1.0, 1.0), "AP50": (-1.0, 1.0)}


def given(data: Path, **more: object) -> argparse.Namespace:
    """Return what the command line would, cut down to networks that train in a moment."""
    settings = [value for value in REDUCED if not value.startswith("train.device")]
    return argparse.Namespace(**{"data": data, "seconds": 1.0, "seed": 0, "set": settings, "trial": 4, **more})


def test_ours_takes_as_many_steps_as_fit(shapes_tiny: Path) -> None:
    row = accuracy.ours("deformable-tiny-lora3", given(shapes_tiny))

    assert row["system"] == "deformable-tiny-lora3"
    assert int(row["steps"] or 0) >= 2
    # Other work on the machine may slow the training, and not the short one before it, or the other way round.
    assert 0.2 < float(row["seconds"] or 0) < 5.0
    assert all(low <= float(row[name] or 0) <= high for name, (low, high) in SHARES.items())


def test_theirs_trains_until_the_time_is_over(shapes_tiny: Path) -> None:
    pytest.importorskip("transformers")

    row = accuracy.theirs(given(shapes_tiny))

    assert int(row["steps"] or 0) >= 1
    assert 1.0 <= float(row["seconds"] or 0) < 10.0
    assert all(low <= float(row[name] or 0) <= high for name, (low, high) in SHARES.items())


def test_mean_time_of_a_step_leaves_out_the_first_ones() -> None:
    watch = accuracy.Watch()
    watch.times = [0.0, 10.0, 11.0, 13.0]

    assert watch.seconds_a_step(1) == pytest.approx(1.5)
    assert watch.seconds_a_step() == pytest.approx(13 / 3)


def test_each_system_and_seed_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def alone(system: str, seed: int, given: argparse.Namespace) -> dict[str, object]:
        asked.append((system, seed, given.data))
        return {"system": system, "seed": seed}

    monkeypatch.setattr(accuracy, "alone", alone)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--data", str(tmp_path), "--seeds", "0", "1", "--json"])
    threads = torch.get_num_threads()
    accuracy.main()
    assert torch.get_num_threads() == threads

    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["system"], row["seed"]) for row in rows] == [
        (system, seed) for seed in (0, 1) for system in accuracy.SYSTEMS
    ]
    assert {data for _, _, data in asked} == {tmp_path.resolve()}


@pytest.mark.slow
def test_a_system_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = given(tmp_path / "none", threads=1, seconds=1.0)
    with pytest.raises(SystemExit, match="deformable-tiny, seed 3: failed with exit code"):
        accuracy.alone("deformable-tiny", 3, options)
