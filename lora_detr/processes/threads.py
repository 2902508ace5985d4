"""How threads of PyTorch wait for each other, chosen before torch is loaded, which reads it once. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from lora_detr.errors import counted

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What OpenMP reads of it; whoever has set one of them has chosen."""

SHORT = {"GOMP_SPINCOUNT": "10000"}
"""What makes threads wait shortly before they sleep. Results are the same bits (benchmarks/contention.py)."""

LOAD = Path("/proc/loadavg")
# Looks at the machine, and seconds between two: a program that is busy runs in all of them.
_LOOKS, _PAUSE = 4, 0.01


def choose_waiting() -> None:
    """Let threads wait shortly if other programs are busy, unless the user has chosen.

    By default a thread that waits spins for milliseconds, which is quickest on an idle machine. Beside other programs
    the thread that it waits for may not be running at all, and spinning takes the processor from it: steps become many
    times as slow. Ranks of a run do as the process that started them.
    """
    if "RANK" not in os.environ and not any(variable in os.environ for variable in VARIABLES) and others_are_busy():
        os.environ.update(SHORT)


def others_are_busy() -> bool:
    """Return whether at least one other program computes now; false where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE)  # an idle machine is known at the first look, without a wait
            if int(LOAD.read_text().split()[3].split("/")[0]) <= 1:  # this process alone
                return False
        return True
    return False


def describe_threads(count: int) -> str:
    """Return the number of threads of a process, and how they wait where that is not PyTorch's default."""
    waiting = [f"{variable}={os.environ[variable]}" for variable in VARIABLES if variable in os.environ]
    if count == 1 or not waiting:
        return counted(count, "thread")
    chosen = "other programs are busy" if all(os.environ.get(k) == v for k, v in SHORT.items()) else "set"
    return f"{counted(count, 'thread')} ({', '.join(waiting)}: {chosen})"
