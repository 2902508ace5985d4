"""The command line, called in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_detr.cli import main
from lora_detr.records.run_directory import LOCK


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def loradetr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    """Run a command in this process, in an empty folder, without the seconds that importing torch costs."""
    logger = logging.getLogger("lora_detr")
    before = (logger.handlers, logger.level, logger.propagate)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["loradetr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, captured.out, captured.err)

    yield call
    logger.handlers, logger.level, logger.propagate = before


@contextlib.contextmanager
def commands_in(folder: Path, **environment: str) -> Iterator[Command]:
    """Give what the fixture ``loradetr`` gives, in a folder of choice, to fixtures that outlive a test."""
    logger = logging.getLogger("lora_detr")
    before = (logger.handlers, logger.level, logger.propagate)

    def call(*arguments: object) -> Ended:
        patch.setattr(sys, "argv", ["loradetr", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("COLUMNS", raising=False)
        for name, value in {"NO_COLOR": "1", **environment}.items():
            patch.setenv(name, value)
        yield call
    logger.handlers, logger.level, logger.propagate = before


def run_process(*arguments: object, folder: Path, **environment: str) -> Ended:
    """Run a command in a process of its own, as a user does, with one thread."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    source = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "lora_detr", *map(str, arguments)],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_told(ended: Ended, code: int, parts: tuple[str, ...], faults: int = 1, remedy: bool = True) -> None:
    """Assert that standard error has nothing but so many faults, each on a line, and a remedy below the last."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err + ended.out
    lines = ended.err.splitlines()
    assert sum(bool(re.match(r"error(\[\w+\])?: \S", line)) for line in lines) == faults, ended.err
    assert lines[0].startswith("error")
    if remedy:
        assert re.match(r"  \S", lines[-1]), f"no remedy: {ended.err}"
    for part in parts:
        assert part in ended.err


def files_in(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of every file, and folders as files of no size; a lock says nothing of a run."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.name != LOCK):
        status = path.stat()
        found[path] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found
