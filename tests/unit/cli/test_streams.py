"""Standard output that is closed, full, or of a narrow encoding ends no command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_detr.cli.console import console, run_guarded
from lora_detr.cli.streams import LOST_OUTPUT, excuse_lost_output, lost_output
from lora_detr.errors import ConfigError

Unread = Callable[[Callable[[], object]], int]
SOURCE = str(Path(__file__).parents[3])


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Unread:
    """Run a command while standard output is a pipe whose reader has ended; return its exit code."""

    def call(command: Callable[[], object]) -> int:
        reading, writing = os.pipe()
        os.close(reading)
        with monkeypatch.context() as patch, os.fdopen(writing, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            return run_guarded(command)

    return call


def chatter() -> None:
    for number in range(3):
        console().print(f"line {number}")
        sys.stdout.write("x" * 100_000)


def test_a_command_does_all_its_work_without_its_reader(unread: Unread, capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def command() -> None:
        chatter()
        done.append(lost_output())

    assert unread(command) == LOST_OUTPUT == 141
    assert done == ["Broken pipe"]
    assert capsys.readouterr().err == ""
    assert lost_output() == ""  # of no command


def test_a_command_that_has_recorded_the_loss_keeps_its_code(unread: Unread) -> None:
    def command() -> None:
        chatter()
        excuse_lost_output()

    assert unread(command) == 0


def test_a_fault_is_still_shown_and_keeps_its_code(unread: Unread, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        chatter()
        raise ConfigError("wrong")

    assert unread(command) == 2
    assert capsys.readouterr().err == "error: wrong\n"


def test_a_full_disk_that_shows_at_the_last_moment_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_guarded(lambda: sys.stdout.write("little\n")) == 141
    assert capsys.readouterr().err == "warning: standard output was lost: No space left on device\n"


def test_without_standard_streams_only_what_is_printed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_guarded(chatter) == 141
    assert run_guarded(lambda: None) == 0

    def fail() -> None:
        raise ConfigError("wrong")

    assert run_guarded(fail) == 2


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "p\\xe9 \\udce9 a...b\n"), ("latin-1", "p\xe9 \\udce9 a...b\n"), ("utf-8", "pé \\udce9 a…b\n")],
)
def test_what_the_encoding_lacks_is_escaped(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert run_guarded(lambda: sys.stdout.write("pé \udce9 a…b\n")) == 0
    assert written.getvalue().decode(encoding) == shown


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "| true", ">/dev/full"])
def test_the_interpreter_ends_without_a_traceback(redirection: str, tmp_path: Path) -> None:
    # The marker is written behind the output; a file that took the number of a closed stream would hold that output.
    code = (
        "import sys; from pathlib import Path; from lora_detr.cli.console import run_guarded; "
        "work = lambda: (file := open('marker', 'w'), sys.stdout.write('x' * 10), sys.stdout.flush(), "
        "sys.stdout.write('y' * 100000), file.write('done'), file.close()); sys.exit(run_guarded(work))"
    )
    line = f'"{sys.executable}" -c "{code}" {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCE},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in ((141,) if redirection != "| true" else (0, 141))  # a reader may end later
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert (tmp_path / "marker").read_text() == "done"


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("class", box=None)
    table.add_row("red\x1b[31m")
    out = console()
    for shown in ("one\x1b[2J\rtwo\n\tthree", Text("four\x1b]0;title\x07"), table, "\u202eexe.png"):
        out.print(shown)
    text = capsys.readouterr().out
    assert text.splitlines()[:2] == ["one\\x1b[2J\\rtwo", "        three"]
    assert "\\x1b[31m" in text
    assert "\\u202eexe.png" in text
    assert text.isascii()
    assert "\x1b" not in text


def test_a_name_in_a_fault_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("no such file: a\x1b[8m\rb", "give another than \u2066c")

    assert run_guarded(fail) == 2
    assert capsys.readouterr().err == "error: no such file: a\\x1b[8m\\rb\n  give another than \\u2066c\n"
