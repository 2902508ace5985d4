"""Keeps threads of PyTorch from waiting for each other in vain beside other programs. Imports no torch by itself.

A thread that waits for another one of its team spins for milliseconds, which is quickest on an idle machine. Beside
other programs the one that is waited for may not be running at all, and spinning takes the processor from it: a step
becomes many times as slow. OpenMP reads once, when torch is loaded, how long to spin; but GNU's spins far more briefly
as long as its process has more threads than there are processors. So while the main thread is kept from running,
threads are parked here that do nothing but be counted. Results are the same bits (benchmarks/contention.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from pathlib import Path

from lora_detr.errors import counted

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What OpenMP reads about waiting; whoever has set one of them has chosen."""

SECONDS = 1.0
"""Between two looks at the main thread."""

# Shares of the time in which the main thread could run and was not let: parked from the first on, released after so
# many looks below the second.
BUSY, QUIET, QUIET_LOOKS = 0.1, 0.03, 10

# Elements of a tensor that PyTorch divides among a thread more.
_ELEMENTS = 65_536


class Parked:
    """Threads that own a team each and wait until they are released."""

    def __init__(self) -> None:
        self._release = threading.Event()
        self._threads: list[threading.Thread] = []

    def park(self, count: int, team: int) -> None:
        """Start ``count`` threads, each with a team of ``team`` threads of OpenMP; returns when all have one."""
        ready = threading.Barrier(count + 1)
        self._threads = [threading.Thread(target=self._wait, args=(team, ready), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        ready.wait()

    def _wait(self, team: int, ready: threading.Barrier) -> None:
        import torch

        torch.zeros(team * _ELEMENTS).add_(1)  # an operation that is divided makes the team
        ready.wait()
        self._release.wait()

    def release(self) -> None:
        """End the threads; OpenMP forgets their teams with them."""
        self._release.set()
        for thread in self._threads:
            thread.join()


class ContentionWatch:
    """Parks threads while the main thread is kept from running.

    Args:
        statistics: file in which the system says how long that thread ran and waited for a processor, in nanoseconds.
    """

    def __init__(self, statistics: Path) -> None:
        self.statistics = statistics
        self.parked: Parked | None = None
        self.quiet = 0
        self._last = (time.monotonic(), self._waited())

    def _waited(self) -> float:
        return int(self.statistics.read_text().split()[1]) / 1e9

    def look(self) -> None:
        """Compare with the look before, and park or release threads."""
        before, waited = self._last
        self._last = (time.monotonic(), self._waited())
        share = (self._last[1] - waited) / max(self._last[0] - before, 1e-9)
        self.quiet = self.quiet + 1 if share < QUIET else 0
        if self.parked is None and share > BUSY:
            self._park()
        elif self.parked is not None and self.quiet >= QUIET_LOOKS:
            self.parked.release()
            self.parked = None

    def _park(self) -> None:
        if "torch" not in sys.modules:
            return
        import torch  # waits until whoever loads it just now is ready

        team = torch.get_num_threads()
        processors = len(os.sched_getaffinity(0))
        if 1 < team <= processors:
            self.parked = Parked()
            # Each adds its team but itself; together with the team of the main thread they must be more.
            self.parked.park(-(-(processors - team + 1) // (team - 1)), team)

    def run(self) -> None:
        """Look for as long as the process lives."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            while True:
                time.sleep(SECONDS)
                self.look()


def is_watchable() -> bool:
    """Return whether the system says how long a thread waits, and the user has not chosen how to wait."""
    return _statistics().exists() and not any(variable in os.environ for variable in VARIABLES)


def _statistics() -> Path:
    return Path(f"/proc/self/task/{os.getpid()}/schedstat")  # of the main thread


@functools.cache
def watch_contention() -> None:
    """Begin to watch the main thread of this process, where that is possible; further calls do nothing."""
    if is_watchable():
        with contextlib.suppress(OSError, ValueError, IndexError):
            threading.Thread(target=ContentionWatch(_statistics()).run, daemon=True, name="contention").start()


def describe_threads(count: int) -> str:
    """Return the number of threads of a process, and how they wait for each other."""
    if count == 1:
        return "1 thread"
    chosen = [f"{variable}={os.environ[variable]}" for variable in VARIABLES if variable in os.environ]
    waits = "short waits while other programs are busy" if is_watchable() else ", ".join(chosen)
    return counted(count, "thread") + (f" ({waits})" if waits else "")
