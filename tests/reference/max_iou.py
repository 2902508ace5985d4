"""Max-IoU assignment of one image, query by query and target by target.

``overlap[g][q]`` is the IoU of target g and query q. Of equal IoUs the lower index wins, of queries and targets alike.
"""

from __future__ import annotations

from collections.abc import Sequence


def assign(
    overlap: Sequence[Sequence[float]], k: int, pos: float, min_pos: float | None = 0.0
) -> list[tuple[int, int]]:
    """Return the (query, target) pairs, sorted; ``min_pos`` is what the best query of a target without any needs."""
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
    if min_pos is None:
        return sorted(target_of.items())
    served, taken = set(target_of.values()), set(target_of)
    # Targets that still have none take their best query in the order of their overlap with it.
    best = {g: min(queries, key=lambda q: (-overlap[g][q], q)) for g in targets if g not in served}
    for g in sorted(best, key=lambda g: (-overlap[g][best[g]], g)):
        if overlap[g][best[g]] > 0 and overlap[g][best[g]] >= min_pos and best[g] not in taken:
            target_of[best[g]] = g
            taken.add(best[g])
    return sorted(target_of.items())


def ignored(overlap: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]], pos: float, neg: float) -> list[int]:
    """Return the queries that are neither paired nor background."""
    paired = {q for q, _ in pairs}
    highest = [max(column) for column in zip(*overlap, strict=True)]
    return [q for q, value in enumerate(highest) if neg <= value < pos and q not in paired]
