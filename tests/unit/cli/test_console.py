"""Exit codes and what is printed for each way a command can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lora_detr.cli import console as module
from lora_detr.cli.console import PLAIN_WIDTH, console, render_error, run_guarded
from lora_detr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LoraDetrError,
    NumericalError,
    OutputError,
    VerificationError,
    WorkerError,
)

CODES = {
    ConfigError: 2,
    DataError: 3,
    CheckpointError: 4,
    OutputError: 5,
    NumericalError: 6,
    WorkerError: 7,
    VerificationError: 8,
}


@pytest.fixture(autouse=True)
def _no_wish_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def raising(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_fault_of_the_user_is_a_line_and_a_remedy(
    kind: type[LoraDetrError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "/a/long/path" * 20
    error = kind(f"train.json: annotations[12] {long}: width -3", "fix it [now]", code="D07")
    assert run_guarded(lambda: raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error[D07]: train.json: annotations[12] {long}: width -3\n  fix it [now]\n"


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(ConfigError("wrong")), debug=True) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: wrong\n")


def test_a_bug_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(ValueError("oops"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ValueError: oops" in err
    assert "internal error" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(), 0), (SystemExit(75), 75), (SystemExit("text"), 1)],
)
def test_interrupts_and_exits(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_success_is_zero() -> None:
    assert run_guarded(lambda: "anything") == 0


def test_message_is_red_and_remedy_is_not() -> None:
    text = render_error(ConfigError("wrong", "do this"))
    assert text.plain == "error: wrong\n  do this"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, len("error: wrong\n  "), "red")]


def test_away_from_a_terminal_there_is_no_colour_and_a_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = console()
    assert plain.width == PLAIN_WIDTH
    assert not plain.is_terminal
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60
    monkeypatch.setenv("NO_COLOR", "1")
    assert console(stderr=True).no_color


def test_importing_the_console_imports_no_torch() -> None:
    code = "import sys, lora_detr.cli.console; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_closed_pipe_prints_no_traceback() -> None:
    code = (
        "import sys; from lora_detr.cli.console import run_guarded; "
        "sys.exit(run_guarded(lambda: [print('x' * 1000, flush=True) for _ in range(1000)]))"
    )
    command = f'{sys.executable} -c "{code}" | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


COMMON = ConfigError("wrong")
OWN = DataError("wrong")


@pytest.mark.parametrize(
    ("rank", "error", "launched", "asked", "told"),
    [
        ("0", COMMON, True, False, "error: wrong\n"),
        ("1", COMMON, True, True, ""),  # the first has told and ended, and so the launcher asks
        ("1", COMMON, True, False, "rank 1: error: wrong\n"),  # the first had no such fault
        ("1", COMMON, False, False, ""),  # nobody ends the first
        ("1", OWN, True, False, "rank 1: error: wrong\n"),
    ],
)
def test_a_fault_of_all_processes_is_left_to_the_first_to_tell(
    rank: str,
    error: LoraDetrError,
    launched: bool,
    asked: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("GROUP_RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setattr(module, "PATIENCE", 20 if asked else 0.2)
    if asked:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert run_guarded(lambda: raising(error)) == error.exit_code
    assert capsys.readouterr().err == told
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_on_another_machine_than_the_first_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "8", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "any"}.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    assert run_guarded(lambda: raising(COMMON)) == 2
    assert time.monotonic() - begun < module.PATIENCE / 2
