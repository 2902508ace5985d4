"""Notices when training is much slower than the step that was measured before it: something else uses the machine."""

from __future__ import annotations

import os
import statistics

STEPS = 20
"""Steps that are looked at, once."""

TIMES = 3.0
"""How many times slower they must be."""


class Pace:
    """Compares the first steps with what one took before the start.

    Args:
        expected: seconds of a step, measured before the start; None to compare nothing.
    """

    def __init__(self, expected: float | None = None) -> None:
        self.expected = expected
        self._taken: list[float] = []

    def add(self, seconds: float) -> str:
        """Take the seconds of one more step; return a line for the user after the last of slow ones, else nothing."""
        if self.expected is None or len(self._taken) >= STEPS:
            return ""
        self._taken.append(seconds)
        found = statistics.median(self._taken)
        if len(self._taken) < STEPS or found < TIMES * self.expected:
            return ""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        cores = os.cpu_count() or 1
        cause = (
            f"other programs use the processor (load {load:.1f} on {cores} cores); with OMP_NUM_THREADS=1, or fewer "
            "programs beside it, a run suffers less"
            if load > cores
            else "the machine computes more slowly than at the start, as when it is too warm or short of memory"
        )
        return (
            f"warning: a step takes {found:.2f} s, {found / self.expected:.0f} times what one took before the start "
            f"({self.expected:.2f} s): {cause}"
        )
