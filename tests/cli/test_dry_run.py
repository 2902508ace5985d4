"""What ``--dry-run`` says a step costs, and the option that lowers it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_told, files_in
from tests.commands import end, start
from tests.small_runs import SMALL


def line(out: str, title: str) -> str:
    """Return the only line of a summary with a title, its folded rest joined to it."""
    lines = out.splitlines()
    places = [place for place, one in enumerate(lines) if one.startswith(f"{title} ")]
    assert len(places) == 1, out
    return " ".join(lines[places[0] : places[0] + 3])


def test_time_and_memory_of_a_step(loradetr: Command, shapes_tiny: Path) -> None:
    ended = loradetr("train", "--preset", SMALL, "--data", shapes_tiny, "--dry-run")
    assert ended.code == 0
    assert "s per step, measured on one batch" in line(ended.out, "time")
    assert "GB for 2 x 96 x 96 pixels (largest batch): weights, gradients, moments 0.00 GB" in line(ended.out, "memory")
    assert "recomputed" not in ended.out
    assert files_in(Path.cwd()) == {}


def test_parts_that_run_again_are_listed(loradetr: Command, shapes_tiny: Path) -> None:
    parts = ("--recompute", "encoder", "--recompute", "decoder")
    ended = loradetr("train", "--preset", SMALL, "--data", shapes_tiny, "--dry-run", *parts)
    assert ended.code == 0
    assert line(ended.out, "recomputed").startswith("recomputed  encoder, decoder")


@pytest.mark.parametrize("part", ["encodr", "heads"])
def test_an_unknown_part_is_refused(part: str, loradetr: Command, shapes_tiny: Path) -> None:
    ended = loradetr("train", "--preset", SMALL, "--data", shapes_tiny, "--dry-run", "--recompute", part)
    assert_told(ended, 2, (f"`train.recompute.0` is '{part}'", "'backbone', 'encoder' or 'decoder'"))


@pytest.mark.slow
def test_of_two_processes_one_speaks(shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("--preset", SMALL, "--data", shapes_tiny, "--output-dir", output, "--device", "cpu", "--nproc", 2)
    code, out, err = end(start("train", *options, "--dry-run", "--accum", 2))
    assert code == 0, err
    assert "GB in each process for 2 x 96 x 96 pixels" in line(out, "memory")
    assert "exchanging gradients" in line(out, "time")
    assert "global batch 8" in line(out, "schedule")
    assert not output.exists()
