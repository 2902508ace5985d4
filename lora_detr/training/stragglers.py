"""Processes of a run that are still there when another one has ended before its time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

# Seconds that the other processes have to go once one has ended before its time; then they are killed.
GRACE = 3
# Seconds between two looks.
INTERVAL = 0.1


@dataclass(frozen=True)
class _Child:
    """A process with a rank; its state is that of ``/proc``, such as T for one that is stopped."""

    rank: int
    state: str


class Stragglers:
    """Once a process has ended, kills those that are still there after a while, and those that are stopped at once.

    All processes of a run that ends well end together. After a failure torch asks the others to end and then waits for
    half a minute; one that hangs, or is stopped, hears nothing. Others need a moment to tell whom they have lost.
    Without ``/proc`` nothing is found, and nothing killed.

    Attributes:
        first: ranks that had ended when that was first noticed.
        killed: ids of the processes that were killed here.
    """

    def __init__(self) -> None:
        self.first: tuple[int, ...] = ()
        self.killed: set[int] = set()

    def watch(self) -> None:
        """Look again and again; for a thread of the process that has started the others."""
        known: dict[int, _Child] = {}
        since = None
        while True:
            time.sleep(INTERVAL)
            running = _running()
            known |= running
            if len(running) == len(known):
                continue
            if since is None:
                since = time.monotonic()
                self.first = tuple(sorted(child.rank for process, child in known.items() if process not in running))
            too_late = time.monotonic() - since > GRACE
            for process, child in running.items():
                if too_late or child.state == "T":
                    self.killed.add(process)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)


def _running() -> dict[int, _Child]:
    """Return the processes with a rank that this one has started and that have not ended."""
    found = {}
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                place = Path("/proc") / child
                with contextlib.suppress(OSError):
                    state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
                    variables = place.joinpath("environ").read_bytes().split(b"\0")
                    ranks = [int(item.removeprefix(b"RANK=")) for item in variables if item.startswith(b"RANK=")]
                    if state != "Z" and ranks:
                        found[int(child)] = _Child(ranks[0], state)
    return found
