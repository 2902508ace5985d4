"""SimOTA assignment of one image, target by target and query by query.

``cost[t][q]`` and ``overlap[t][q]`` belong to target t and query q. Of equal costs the lower index wins, of queries and
targets alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

Rows = Sequence[Sequence[float]]


def class_cost(logits: Sequence[float], label: int) -> float:
    """Return the binary cross-entropy of the square roots of a query's class probabilities, summed over classes."""
    cost = 0.0
    for c, logit in enumerate(logits):
        p = sqrt(1 / (1 + exp(-logit)))
        cost -= max(log(p) if c == label else log(1 - p), -100.0)
    return cost


def assign(cost: Rows, overlap: Rows, q: int) -> list[tuple[int, int]]:
    """Return the (query, target) pairs, sorted; ``q`` is how many IoUs of a target are added up."""
    target_of: dict[int, int] = {}
    for t, row in enumerate(cost):
        number = max(1, int(sum(sorted(overlap[t], reverse=True)[:q])))
        for query in sorted(range(len(row)), key=lambda i: (row[i], i))[:number]:
            if query not in target_of or row[query] < cost[target_of[query]][query]:
                target_of[query] = t
    return sorted(target_of.items())
