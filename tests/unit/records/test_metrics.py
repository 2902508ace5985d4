"""Logs on a disk that is full: training goes on, no line is half there, and what is missing is said."""

from __future__ import annotations

import csv
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_detr.errors import OutputError
from lora_detr.evaluation.coco_eval import METRICS, CocoMetrics
from lora_detr.records.metrics import RunningMean, append_line, append_row, padded_share
from lora_detr.records.run_directory import RunDirectory
from lora_detr.training.run_log import RunLog
from lora_detr.training.step import StepResult
from tests import small_runs
from tests.limits import file_size_limit
from tests.small_runs import Lines, read_lines

RECORD = {"step": 1, "loss": 2.5}
RESULT = StepResult(loss=2.5, terms=(), gradient_norm=1.0, skipped=False, seconds=0.1)


def test_padding_is_a_share_of_all_pixels_and_unknown_without_any() -> None:
    means = RunningMean()
    means.add({"loss": 1.0})  # from a checkpoint within an epoch of a version that counted no pixels
    assert math.isnan(padded_share(means.means()))
    means.add({"loss": 1.0, "pixels": 100, "padded": 50})
    means.add({"loss": 1.0, "pixels": 300, "padded": 10})
    assert padded_share(means.means()) == pytest.approx(60 / 400)


class Disk:
    """What ``os.write`` does on a disk with so many bytes left, which takes a part of a line before it refuses."""

    def __init__(self, room: int, path: str = "") -> None:
        self.room, self.path = room, path
        self.write = os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.path not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return self.write(descriptor, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self.write(descriptor, data[: self.room])
        self.room -= count
        return count


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Disk]:
    """Return what limits the room for files of a name from here on."""

    def limit(room: int, path: str) -> Disk:
        found = Disk(room, path)
        monkeypatch.setattr(os, "write", found)
        return found

    return limit


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_is_there_in_full_or_not_at_all_p12(room: int, tmp_path: Path, disk: Callable[[int, str], Disk]) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, RECORD)
    before = path.read_bytes()
    limited = disk(room, path.name)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written: No space left") as caught:
        append_line(path, RECORD)
    assert caught.value.exit_code == 5
    assert path.read_bytes() == before
    limited.room = 1000
    append_line(path, {**RECORD, "step": 2})
    assert [record["step"] for record in read_lines(path)] == [1, 2]


def test_a_write_in_parts_is_a_whole_line_p12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    append_line(tmp_path / "metrics.jsonl", RECORD)
    assert read_lines(tmp_path / "metrics.jsonl") == [RECORD]


def test_a_header_without_its_row_is_taken_back_p12(tmp_path: Path, disk: Callable[[int, str], Disk]) -> None:
    path = tmp_path / "results.csv"
    limited = disk(12, path.name)
    with pytest.raises(OutputError):
        append_row(path, RECORD)
    assert path.read_bytes() == b""
    limited.room = 1000
    append_row(path, RECORD)
    append_row(path, RECORD)
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"step": "1", "loss": "2.5"}] * 2


def log_of(folder: Path, display: Lines, policy: str = "warn") -> RunLog:
    config = small_runs.config(f"train.on_full_log={policy}").train
    weights = {"class": 1.0, "l1": 1.0, "giou": 1.0}
    return RunLog(RunDirectory(folder), display, config, last_layer=0, weights=weights, parameters=1, step=0)


def test_the_warning_comes_once_and_the_count_at_the_end_p12(tmp_path: Path) -> None:
    said = Lines()
    log = log_of(tmp_path, said)
    log.close()
    assert said.lines == []
    for step in range(3):
        with file_size_limit(0):
            log.step(step, 0, RESULT, [])
    log.step(3, 0, RESULT, [])
    assert len(said.lines) == 1
    assert "metrics.jsonl: cannot be written: File too large; training continues" in said.lines[0]
    log.close()
    assert "3 records are missing" in said.lines[1]
    assert [record["step"] for record in read_lines(tmp_path / "metrics.jsonl")] == [3]


def test_what_belongs_to_a_record_is_left_out_with_it_p12(tmp_path: Path, disk: Callable[[int, str], Disk]) -> None:
    said = Lines()
    log = log_of(tmp_path, said)
    limited = disk(0, "log.txt")
    metrics = CocoMetrics(dict.fromkeys(METRICS, 0.5), ())
    log.epoch(1, 0, RunningMean(), 1e-3, metrics)
    assert not (tmp_path / "results.csv").exists()
    limited.room = 10_000
    log.epoch(2, 1, RunningMean(), 1e-3, metrics)
    assert [record["step"] for record in read_lines(tmp_path / "log.txt")] == [2]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
    log.close()
    assert "1 records are missing" in said.lines[-1]


@pytest.mark.parametrize("policy", ["warn", "error"])
def test_another_fault_than_lack_of_room_is_never_left_out_p12(policy: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        log_of(tmp_path / "missing", Lines(), policy).step(1, 0, RESULT, [])


def test_a_run_goes_on_without_its_lines_p12(
    small_run: Path, shapes_tiny: Path, tmp_path: Path, disk: Callable[[int, str], Disk]
) -> None:
    metrics = small_run / "metrics.jsonl"
    # Room for three lines and a half.
    lines = metrics.read_bytes().splitlines(keepends=True)
    disk(sum(map(len, lines[:3])) + len(lines[3]) // 2, "metrics.jsonl")
    shown = Lines()
    finished = small_runs.train(shapes_tiny, tmp_path / "run", display=shown)
    assert finished.metrics is not None
    written = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["loss_hex"] for record in written] == [record["loss_hex"] for record in read_lines(metrics)[:3]]
    warnings = [line for line in shown.lines if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "training continues" in warnings[0]
    assert f"{len(lines) - 3} records are missing" in warnings[1]
    names = sorted(path.name for path in (small_run / "checkpoints").iterdir())
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == names


def test_a_run_that_must_have_its_lines_ends_p12(
    shapes_tiny: Path, tmp_path: Path, disk: Callable[[int, str], Disk]
) -> None:
    disk(10, "metrics.jsonl")
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written"):
        small_runs.train(shapes_tiny, tmp_path / "run", "train.on_full_log=error")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b""
    assert '"code": 5' in (tmp_path / "run" / "exit.json").read_text()


def test_a_log_that_is_a_link_is_refused_x04(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name, append in (("metrics.jsonl", append_line), ("results.csv", append_row)):
        (tmp_path / name).symlink_to(victim)
        with pytest.raises(OutputError, match=name):
            append(tmp_path / name, RECORD)
    assert victim.read_text() == "precious"
