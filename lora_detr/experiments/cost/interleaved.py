"""Time several ways of doing something in turn in one process, so that a machine's changing speed touches all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """What was measured of one way.

    Attributes:
        seconds: median over the rounds.
        ratio: median over the rounds of this way's time as a multiple of the first way's in the same round.
        lowest: the least of those multiples.
        highest: the greatest.
    """

    seconds: float
    ratio: float
    lowest: float
    highest: float


def interleaved(
    ways: Sequence[Callable[[], object]], rounds: int, warm_up: int = 1, device: str = "cpu"
) -> list[Timing]:
    """Run all ways in turn, round after round, and return the timing of each, ratios being to the first.

    Args:
        ways: at least one; what they return is dropped.
        rounds: that count, at least one. Every other round goes through the ways from last to first, so that none
            always follows the same neighbour.
        warm_up: rounds before those, which do not count.
        device: whose work is waited for before the clock is read.
    """
    measured: list[list[float]] = [[] for _ in ways]
    for turn in range(warm_up + rounds):
        order = range(len(ways)) if turn % 2 == 0 else reversed(range(len(ways)))
        for i in order:
            wait_for(device)
            start = time.perf_counter()
            ways[i]()
            wait_for(device)
            if turn >= warm_up:
                measured[i].append(time.perf_counter() - start)
    timings = []
    for times in measured:
        ratios = [time / first for time, first in zip(times, measured[0], strict=True)]
        timings.append(Timing(statistics.median(times), statistics.median(ratios), min(ratios), max(ratios)))
    return timings


def wait_for(device: str) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
