"""The command line, called in this process or in one of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_detr.cli import main


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
