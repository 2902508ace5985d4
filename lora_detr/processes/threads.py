"""How threads of PyTorch wait for each other: set before torch is loaded, which reads it once. Imports no torch."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What OpenMP reads of it; whoever has set one of them has chosen."""

WAITING = {"GOMP_SPINCOUNT": "1000"}
"""What is set where the user has set nothing. Results are the same bits with any of it (benchmarks/contention.py)."""


def choose_waiting() -> None:
    """Set how threads wait, unless the user has.

    By default a thread that waits spins for milliseconds. Where other programs run beside, the thread that it waits for
    may not be running at all, and spinning takes the processor from it: steps become tens of times as slow.
    """
    if not any(variable in os.environ for variable in VARIABLES):
        os.environ.update(WAITING)
