"""Commands started as a user starts them, the processes they start in turn, and whether any of those is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.small_runs import read_lines

REPOSITORY = Path(__file__).parents[1]
# Torch elastic gives each rank a session of its own, so that neither group nor session tells what belongs together.
_MARK = "LORADETR_TEST_COMMAND"
_marks: dict[int, str] = {}


def start(
    *arguments: object, before: Sequence[str] = (), module: str = "lora_detr", **variables: str
) -> subprocess.Popen[str]:
    """Start a command whose processes can all be found again.

    Args:
        arguments: of the command.
        before: of the interpreter, before the module.
        module: what is run.
        variables: of the environment, beside those of this process.
    """
    command = [sys.executable, *before, "-m", module, *map(str, arguments)]
    mark = uuid.uuid4().hex
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **variables, _MARK: mark}
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _marks[process.pid] = mark
    return process


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Wait for a command; return its code, what it said, and its complaints."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def family(command: int) -> list[int]:
    """Return all processes of a command that run: itself, ranks, readers of images; one that has ended is none."""
    wanted = f"{_MARK}={_marks[command]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def signal_all(command: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a command, as a scheduler does."""
    for process in family(command):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def is_gone(command: int, within: float = 5) -> bool:
    """Say whether no process of a command is left, after so many seconds at most."""
    deadline = time.monotonic() + within
    while family(command):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill whatever of a command is left behind."""
    try:
        yield process
    finally:
        signal_all(process.pid, signal.SIGKILL)
        process.communicate()


def ranks(launcher: int) -> dict[int, int]:
    """Return rank -> process of what a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        number = [item for item in variables if item.startswith(b"RANK=")]
        if number:
            found[int(number[0].removeprefix(b"RANK="))] = int(child)
    return found


def wait_for_steps(run: Path, count: int) -> None:
    """Wait until so many steps are logged."""
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() or len(read_lines(run / "metrics.jsonl")) < count:
        assert time.monotonic() < deadline, "no step within 90 s"
        time.sleep(0.05)
