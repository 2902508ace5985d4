"""One-to-one matching: the cost of every pair by loops, and the best assignment by trying all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy
from scipy.optimize import linear_sum_assignment

from tests.reference.boxes import giou, l1
from tests.reference.one_to_many import sigmoid

Pair = tuple[int, int]


def class_cost(logit: float, epsilon: float = 1e-8) -> float:
    """Return the focal-style cost of calling a query by a class with this logit."""
    p = sigmoid(logit)
    positive = 0.25 * (1 - p) ** 2 * -math.log(p + epsilon)
    negative = 0.75 * p**2 * -math.log(1 - p + epsilon)
    return positive - negative


def cost_matrix(
    logits: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    targets: Sequence[Sequence[float]],
    *,
    class_weight: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    epsilon: float = 1e-8,
) -> list[list[float]]:
    """Return cost[q][g]."""
    rows = []
    for logit_row, box in zip(logits, boxes, strict=True):
        row = []
        for label, target in zip(labels, targets, strict=True):
            cost = class_weight * class_cost(logit_row[label], epsilon) if class_weight else 0.0
            cost += l1_weight * l1(box, target)
            cost -= giou_weight * giou(box, target)
            row.append(cost)
        rows.append(row)
    return rows


def total(cost: Sequence[Sequence[float]], pairs: Sequence[Pair]) -> float:
    """Return the summed cost of the pairs."""
    return math.fsum(cost[q][g] for q, g in pairs)


def brute_force(cost: Sequence[Sequence[float]]) -> list[Pair]:
    """Return the cheapest one-to-one assignment by trying every one; for up to about 5 x 5.

    min(Q, T) pairs. Of equally cheap assignments the one found first, hence by ascending indices.
    """
    num_queries = len(cost)
    num_targets = len(cost[0]) if cost else 0
    best: list[Pair] = []
    best_cost = math.inf
    if num_queries >= num_targets:
        attempts = (
            [(q, g) for g, q in enumerate(chosen)] for chosen in itertools.permutations(range(num_queries), num_targets)
        )
    else:
        attempts = (
            [(q, g) for q, g in enumerate(chosen)] for chosen in itertools.permutations(range(num_targets), num_queries)
        )
    for pairs in attempts:
        cost_of_pairs = total(cost, pairs)
        if cost_of_pairs < best_cost:
            best, best_cost = pairs, cost_of_pairs
    return sorted(best)


def brute_force_repeated(cost: Sequence[Sequence[float]], copies: int) -> list[Pair]:
    """Return the cheapest assignment to a list of targets that is repeated as a whole, by trying every one.

    Pairs are (query, target), sorted; a target stands in up to ``copies`` of them.
    """
    repeated = [list(row) * copies for row in cost]
    return sorted((q, g % len(cost[q])) for q, g in brute_force(repeated))


def solve(cost: Sequence[Sequence[float]]) -> list[Pair]:
    """Return the cheapest assignment in ascending query order, for sizes at which trying all is hopeless."""
    if not cost or not cost[0]:
        return []
    queries, targets = linear_sum_assignment(numpy.asarray(cost, dtype=numpy.float64))
    return sorted(zip(queries.tolist(), targets.tolist(), strict=True))


def solve_repeated(cost: Sequence[Sequence[float]], copies: int, share: float) -> list[Pair]:
    """Return the cheapest (query, target) pairs where a target has ``copies``, or as many as a share of queries allows.

    Args:
        cost: of [query][target].
        copies: of each target, at most; at least one stands.
        share: of the queries that all copies may take.
    """
    if not cost or not cost[0]:
        return []
    queries, targets = len(cost), len(cost[0])
    while copies > 1 and copies * targets > share * queries:
        copies -= 1
    return sorted((q, g % targets) for q, g in solve([list(row) * copies for row in cost]))
