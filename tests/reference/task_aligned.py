"""Task-aligned assignment of one image, target by target and query by query.

``probability[t][q]`` and ``overlap[t][q]`` belong to target t and query q. Of equal values the lower index wins, of
queries and targets alike.
"""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def assign(
    probability: Rows, overlap: Rows, k: int, alpha: float, beta: float, inside: Sequence[Sequence[bool]] | None = None
) -> dict[tuple[int, int], float]:
    """Return the published score of each (query, target) pair."""
    aligned = [
        [p**alpha * u**beta for p, u in zip(*rows, strict=True)] for rows in zip(probability, overlap, strict=True)
    ]
    target_of: dict[int, int] = {}
    for t, row in enumerate(aligned):
        for q in sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]:
            if row[q] <= 0 or (inside is not None and not inside[t][q]):
                continue
            if q not in target_of or overlap[t][q] > overlap[target_of[q]][q]:
                target_of[q] = t
    scores = {}
    for q, t in target_of.items():
        own = [i for i in target_of if target_of[i] == t]
        highest = max(aligned[t][i] for i in own)
        scores[q, t] = aligned[t][q] / highest * max(overlap[t][i] for i in own)
    return scores
