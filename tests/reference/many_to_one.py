"""Soft targets of the queries of each target, by rank.

``probability[t][q]`` and ``overlap[t][q]`` belong to target t and query q.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

Rows = Sequence[Sequence[float]]
Pair = tuple[int, int]


def weigh(pairs: Sequence[Pair], probability: Rows, overlap: Rows, alpha: float, tau: float) -> dict[Pair, float]:
    """Return the soft target of each (query, target) pair; of equal qualities the lower query ranks first."""
    soft = {}
    for t in range(len(overlap)):
        quality = {q: max(probability[t][q] ** alpha * overlap[t][q] ** (1 - alpha), 0.01) for q, g in pairs if g == t}
        for rank, q in enumerate(sorted(quality, key=lambda q: (-quality[q], q))):
            soft[q, t] = quality[q] * exp(-rank / tau)
    return soft
