"""Work is done and written although nobody can read what a command prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_detr.cli import main
from tests.cli.conftest import Command
from tests.small_runs import SMALL, read_lines

Unread = Callable[..., int]


@pytest.fixture
def unread(loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> Unread:
    """Run a command whose reader has ended, in the empty folder of ``loradetr``; return its exit code."""

    def call(*arguments: object) -> int:
        reading, writing = os.pipe()
        os.close(reading)
        with monkeypatch.context() as patch, os.fdopen(writing, "w") as stream:
            patch.setattr(sys, "argv", ["loradetr", *map(str, arguments)])
            patch.setattr(sys, "stdout", stream)
            with pytest.raises(SystemExit) as caught:
                main()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return call


def test_training_goes_to_its_end_and_records_the_loss(
    unread: Unread, shapes_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = unread("train", "--preset", SMALL, "--data", shapes_tiny, "--max-steps", 3, "-o", "run")
    assert (code, capsys.readouterr().err) == (0, "")
    ended = json.loads(Path("run", "exit.json").read_text())
    assert (ended["code"], ended["step"], ended["display"]) == (0, 3, "lost: Broken pipe")
    assert len(read_lines(Path("run", "metrics.jsonl"))) == 3
    assert Path("run", "checkpoints", "step-00000003", "MANIFEST.json").is_file()


def test_a_run_with_its_display_records_none(small_run: Path) -> None:
    assert "display" not in json.loads((small_run / "exit.json").read_text())


def test_every_other_command_writes_its_files_and_ends_with_141(
    unread: Unread, small_run: Path, own_run: Path, shapes_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: tuple[tuple[object, ...], ...] = (
        ("eval", own_run, "--predictions", "found.json"),
        ("eval", own_run, "--json"),
        ("strip", small_run, "--output", "s.safetensors", "--inputs", 1),
        ("predict", small_run, shapes_tiny / "val", "--output", "seen"),
        ("predict", small_run, shapes_tiny / "val", "--output", "seen-too", "--json"),
        ("train", "--preset", SMALL, "--data", shapes_tiny, "--dry-run"),
        ("doctor", "--data", shapes_tiny, "--report", "report.json"),
        ("config", "list"),
        ("config", "show", "deformable"),
        ("--help",),
        ("train", "--help"),
    )
    codes = {" ".join(map(str, command)): unread(*command) for command in commands}
    assert set(codes.values()) == {141}, codes
    assert capsys.readouterr().err == ""
    for name in ("found.json", "seen/predictions.json", "seen-too/predictions.json", "report.json"):
        assert json.loads(Path(name).read_text())
    assert Path("s.safetensors").stat().st_size > 10_000
    assert len(list(Path("seen").iterdir())) == 7
