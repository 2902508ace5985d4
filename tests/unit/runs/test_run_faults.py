"""What happens to folder and clock while a run trains: it ends in order, or does not notice."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_detr
from lora_detr.checkpoints.checkpoint import latest
from lora_detr.errors import LoraDetrError, OutputError
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from lora_detr.tensor_files import read_tensors
from tests import small_runs
from tests.small_runs import Lines, read_lines

TEN_YEARS = 10 * 365 * 24 * 3600


class AfterStep(Lines):
    """A display that does something once, after a step."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.what = step, what

    def step(self, done: int, epoch: int, loss: float) -> None:
        """Do it after the step."""
        if done == self.at:
            self.what()


def read_only() -> Path:
    """Return a folder that nobody may write into, not even the superuser."""
    folder = Path("/proc/self")
    if not folder.is_dir():
        pytest.skip("no /proc on this system, and permissions do not bind the superuser")
    return folder


class TestPlaces:
    def test_read_only_folder_p14(self, shapes_tiny: Path) -> None:
        self._refused(shapes_tiny, read_only() / "run")

    def test_folder_that_cannot_be_made_p14(self, shapes_tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        self._refused(shapes_tiny, tmp_path / "file" / "run")
        assert (tmp_path / "file").read_text() == "mine"

    def test_path_that_is_a_file_p14(self, shapes_tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        self._refused(shapes_tiny, tmp_path / "run")
        assert (tmp_path / "run").read_text() == "mine"

    def test_missing_folder_is_made_p14(self, shapes_tiny: Path, tmp_path: Path) -> None:
        place = tmp_path / "missing" / "run"
        small_runs.train(shapes_tiny, place, "train.max_steps=1")
        assert latest(place / "checkpoints") is not None

    def _refused(self, data: Path, place: Path) -> None:
        shown = AfterStep(1, lambda: pytest.fail("a step was made"))
        with pytest.raises(OutputError) as caught:
            small_runs.train(data, place, display=shown)
        assert caught.value.exit_code == 5
        assert str(place) in caught.value.message
        assert caught.value.remedy


class TestRemoved:
    @pytest.mark.parametrize("log_every", [1, 100])
    def test_run_directory_p15(self, log_every: int, shapes_tiny: Path, tmp_path: Path) -> None:
        place = tmp_path / "run"
        shown = AfterStep(2, lambda: shutil.rmtree(place))
        with pytest.raises(OutputError, match="cannot be written: No such file") as caught:
            small_runs.train(shapes_tiny, place, f"train.log_every={log_every}", display=shown)
        assert caught.value.exit_code == 5
        assert str(place) in caught.value.message
        assert not (place / "checkpoints").exists()

    def test_folder_of_checkpoints_p15(self, shapes_tiny: Path, tmp_path: Path) -> None:
        place = tmp_path / "run"
        shown = AfterStep(2, lambda: shutil.rmtree(place / "checkpoints"))
        with pytest.raises(OutputError, match="checkpoints: cannot be written"):
            small_runs.train(shapes_tiny, place, display=shown)
        assert json.loads((place / "exit.json").read_text())["code"] == 5

    def test_while_it_is_resumed_p15(self, own_run: Path) -> None:
        shown = AfterStep(14, lambda: shutil.rmtree(own_run))
        with pytest.raises(OutputError):
            run.resume(own_run, {"train.epochs": 3}, shown)


class TestClock:
    def test_a_clock_that_jumps_changes_nothing_p16(
        self, small_run: Path, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, draw = time.time(), random.Random(0)
        monkeypatch.setattr(time, "time", lambda: now + draw.choice((-TEN_YEARS, 0, TEN_YEARS)))
        place = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=7", "train.save_every=2").directory
        checkpoints = sorted((place / "checkpoints").glob("step-*"))
        for age, path in enumerate(checkpoints):  # the newest looks oldest
            for file in (path, *path.iterdir()):
                os.utime(file, (now - age * TEN_YEARS, now - age * TEN_YEARS))
        assert latest(place / "checkpoints") == checkpoints[-1]
        run.resume(place, {"train.max_steps": 12}, Lines())
        assert [line["loss_hex"] for line in read_lines(place / "metrics.jsonl")] == [
            line["loss_hex"] for line in read_lines(small_run / "metrics.jsonl")
        ]
        assert all(0 < line["seconds"] < 1000 for line in read_lines(place / "metrics.jsonl"))
        name = Path("checkpoints/step-00000012/model.safetensors")
        found, expected = (read_tensors(directory / name)[0] for directory in (place, small_run))
        assert all(found[key].equal(expected[key]) for key in expected)
        # Steps decided what stayed, though the times of files say otherwise.
        assert (place / "checkpoints" / "step-00000012").is_dir()
        assert not (place / "checkpoints" / "step-00000002").exists()

    def test_the_time_of_day_is_read_for_one_column_only_p16(self) -> None:
        """Order and durations come from steps and from clocks that never jump."""
        package = Path(lora_detr.__file__).parent
        reads = [
            str(path.relative_to(package))
            for path in package.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and (
                (node.attr in ("time", "time_ns") and isinstance(node.value, ast.Name) and node.value.id == "time")
                or node.attr in ("now", "today", "utcnow", "st_mtime", "st_mtime_ns", "st_ctime", "getmtime")
            )
        ]
        assert reads == [str(Path("training", "run_log.py"))]


class TestLock:
    def test_names_process_and_host_c09(self, own_run: Path) -> None:
        directory = RunDirectory(own_run)
        with directory.lock(), pytest.raises(LoraDetrError) as caught:
            run.resume(own_run, {"train.epochs": 3}, Lines())
        assert (caught.value.exit_code, caught.value.code) == (2, "C09")
        assert f"process {os.getpid()} on {os.uname().nodename}" in caught.value.message
