"""Max-IoU assignment of one image, query by query and target by target.

``overlap[g][q]`` is the IoU of target g and query q. Of equal IoUs the lower index wins, of queries and targets alike.
"""

from __future__ import annotations

from collections.abc import Sequence


def assign(overlap: Sequence[Sequence[float]], k: int, pos: float) -> list[tuple[int, int]]:
    """Return the (query, target) pairs, sorted."""
    if not overlap:
        return []
    targets, queries = range(len(overlap)), range(len(overlap[0]))
    target_of: dict[int, int] = {}
    for g in targets:
        positives = []
        for q in queries:
            preferred = min(targets, key=lambda t: (-overlap[t][q], t))
            if preferred == g and overlap[g][q] >= pos:
                positives.append(q)
        positives.sort(key=lambda q: (-overlap[g][q], q))
        for q in positives[:k]:
            target_of[q] = g
    served, taken = set(target_of.values()), set(target_of)
    # Targets that still have none take their best query in the order of their overlap with it.
    best = {g: min(queries, key=lambda q: (-overlap[g][q], q)) for g in targets if g not in served}
    for g in sorted(best, key=lambda g: (-overlap[g][best[g]], g)):
        if overlap[g][best[g]] > 0 and best[g] not in taken:
            target_of[best[g]] = g
            taken.add(best[g])
    return sorted(target_of.items())
