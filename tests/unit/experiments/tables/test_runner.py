"""Trainings beside each other: what is done is kept, what fails stops nothing else, a signal reaches all."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lora_detr.errors import ConfigError, Stopped, WorkerError
from lora_detr.experiments.tables.runner import Runner, is_done, refuse_failures, slots
from lora_detr.experiments.tables.study import Study
from tests.unit.experiments.tables.studies import study_in, write_run

# Stands in for loradetr: notes how it was called, and leaves what a training leaves.
PROGRAM = """
import json, os, pathlib, signal, sys, time

arguments = sys.argv[1:]
notes = pathlib.Path(os.environ["NOTES"])
if arguments[0] == "eval":
    print(json.dumps({"AP": 0.25}))
    sys.exit(0)
folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
(notes / f"{folder.parent.name}-{folder.name}").write_text(json.dumps([arguments, os.environ.get("OMP_NUM_THREADS")]))
if os.environ.get("FAILS") == folder.parent.name:
    print("error: no such thing", file=sys.stderr)
    sys.exit(2)
if "SLOW" in os.environ:
    def save(number, frame):
        (notes / f"saved-{folder.parent.name}").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    (notes / f"begun-{folder.parent.name}").touch()
    time.sleep(60)
folder.mkdir(parents=True)
(folder / "results.csv").write_text("step,AP\\n")
(folder / "exit.json").write_text(json.dumps({"code": 0}))
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes how it was called."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("NOTES", str(folder))
    return folder


def runner_of(study: Study, lines: list[str], jobs: int = 2) -> Runner:
    program = [sys.executable, str(study.folder.parent / "program.py")]
    return Runner(study, slots(jobs, 1, 0, 4), ["--workers", "0"], lines.append, program)


def test_every_run_is_trained_and_answered_once(tmp_path: Path, notes: Path) -> None:
    study, lines = study_in(tmp_path), list[str]()
    outcomes = runner_of(study, lines).run()
    refuse_failures(outcomes, study)
    assert {path.name for path in notes.iterdir()} == {"base-seed0", "base-seed1", "three-seed0", "three-seed1"}
    arguments, threads = json.loads((notes / "three-seed1").read_text(encoding="utf-8"))
    assert arguments == [*study.train_command(study.runs[3]), "--workers", "0"]
    assert threads == "2"
    answers = sorted(path.name for path in (study.folder / "answers").iterdir())
    assert answers == ["three-seed0-1.json", "three-seed1-1.json"]
    assert sorted(lines)[0].startswith("[1/4] ")
    for path in notes.iterdir():
        path.unlink()
    assert all(outcome.code == 0 for outcome in runner_of(study, lines).run())
    assert not list(notes.iterdir()), "what was done was trained again"


def test_a_run_that_fails_is_named_and_stops_no_other(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "base")
    study, lines = study_in(tmp_path, seeds=[0]), list[str]()
    outcomes = runner_of(study, lines).run()
    assert {outcome.run.row.name: outcome.code for outcome in outcomes} == {"base": 2, "three": 0}
    assert any("base-seed0: failed with exit code 2" in line and "error: no such thing" in line for line in lines)
    with pytest.raises(WorkerError, match="1 of 2 runs failed: base-seed0"):
        refuse_failures(outcomes, study)
    monkeypatch.delenv("FAILS")
    refuse_failures(runner_of(study, lines).run(), study)


def test_a_request_to_end_lets_trainings_save_and_starts_no_other(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "1")
    study = study_in(tmp_path)

    def ask() -> None:
        deadline = time.monotonic() + 30
        while not ((notes / "begun-base").exists() and (notes / "begun-three").exists()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped, match="stopped on SIGTERM; the same command resumes"):
        runner_of(study, []).run()
    asking.join()
    assert {"saved-base", "saved-three"} <= {path.name for path in notes.iterdir()}
    assert not (notes / "base-seed1").exists()


def test_done_is_what_ended_well(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    well, badly, never, damaged = study.runs
    write_run(well, {2: 0.1})
    write_run(badly, {2: 0.1}, code=6)
    write_run(damaged, {2: 0.1})
    (damaged.folder / "exit.json").write_text("{", encoding="utf-8")
    assert [is_done(run) for run in (well, badly, never, damaged)] == [True, False, False, False]
    (damaged.folder / "exit.json").unlink()
    (damaged.folder / "exit.json").mkdir()  # the system refuses to read it
    assert not is_done(damaged)


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots(None, 1, 0, 8) == [{"OMP_NUM_THREADS": "8"}]
    assert slots(3, 1, 0, 8) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots(None, 2, 4, 8) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert slots(None, 1, 2, 8) == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]
    with pytest.raises(ConfigError, match="3 trainings on 1 GPUs each: PyTorch sees 2"):
        slots(3, 1, 2, 8)
    with pytest.raises(ConfigError, match="--jobs 0"):
        slots(0, 1, 0, 8)
