"""One-to-many assignment of one image, query by query and target by target.

``score[g][q]`` is the matching score of target g and query q (Eq. 7). Ties: of equal scores the lower index wins, for
the target a query prefers, for the query forced to a target and for a target's k best alike.

Scores and threshold are compared as they are. Scores that came from float32 tensors and must be compared as such
need a threshold rounded the same way: ``torch.tensor(0.7).item()``, not 0.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.reference.boxes import iou

Pair = tuple[int, int]
Scores = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rules:
    """Parameters and options of the assigner; the defaults are those of the official code.

    Attributes:
        k: most queries a target gets.
        threshold: score a query needs with the target it prefers.
        strict_threshold: the score must exceed the threshold; otherwise it may equal it.
        force_best: the best query of each target is positive whatever its score.
        positive_fraction: at most this share of the queries is positive; None for no such cap.
        candidates: "official" takes a target's k best from its whole score row; "strict" only from queries that prefer
            the target and reach the threshold, and forces nothing.
    """

    k: int
    threshold: float = 0.4
    strict_threshold: bool = False
    force_best: bool = True
    positive_fraction: float | None = 0.25
    candidates: str = "official"


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)), without overflow for large negative x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def matching_scores(
    logits: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    targets: Sequence[Sequence[float]],
    class_weight: float = 0.3,
) -> list[list[float]]:
    """Return score[g][q] = class_weight * probability of g's class + (1 - class_weight) * IoU (Eq. 7)."""
    return [
        [
            class_weight * sigmoid(logits[q][label]) + (1 - class_weight) * iou(boxes[q], target)
            for q in range(len(boxes))
        ]
        for label, target in zip(labels, targets, strict=True)
    ]


def preferred_targets(score: Scores) -> list[int]:
    """Return the target with the highest score for each query; the first of equals."""
    best = []
    for q in range(len(score[0])):
        winner = 0
        for g in range(1, len(score)):
            if score[g][q] > score[winner][q]:
                winner = g
        best.append(winner)
    return best


def positive_queries(score: Scores, rules: Rules) -> list[int]:
    """Return the positive queries in ascending order, before the cap."""
    num_queries = len(score[0])
    best = preferred_targets(score)
    positive = [_passes(score[best[q]][q], rules) for q in range(num_queries)]
    if rules.force_best and rules.candidates == "official":
        for row in score:
            winner = 0
            for q in range(1, num_queries):
                if row[q] > row[winner]:
                    winner = q
            positive[winner] = True
    return [q for q in range(num_queries) if positive[q]]


def keep_positives(
    positives: Sequence[int],
    num_queries: int,
    fraction: float | None,
    *,
    permutation: Sequence[int] | None = None,
    priority: Sequence[float] | None = None,
) -> list[int]:
    """Return the positives that remain under the cap of ``int(fraction * num_queries)``, in ascending order.

    Args:
        positives: positive queries in ascending order.
        num_queries: Q.
        fraction: of the queries; None for no cap.
        permutation: of the positions in ``positives``; the positions it names first stay.
        priority: one number a query; the positives with the highest numbers stay, the lower index of equals.

    Raises:
        ValueError: the cap applies and neither a permutation nor a priority says whom to keep.
    """
    cap = num_queries if fraction is None else int(fraction * num_queries)
    if len(positives) <= cap:
        return list(positives)
    if permutation is not None:
        return sorted(positives[position] for position in permutation[:cap])
    if priority is not None:
        return sorted(sorted(positives, key=lambda q: (-priority[q], q))[:cap])
    raise ValueError(f"{len(positives)} positives exceed the cap of {cap}; give a permutation or a priority")


def assign(
    score: Scores,
    rules: Rules,
    *,
    permutation: Sequence[int] | None = None,
    priority: Sequence[float] | None = None,
) -> list[Pair]:
    """Return the (query, target) pairs of one image by ascending score.

    Of pairs with equal scores the one with the lower target, then the lower query, comes last, since the last pair of a
    query wins wherever one value a query is needed.
    """
    if not score:
        return []
    best = preferred_targets(score)
    kept = keep_positives(
        positive_queries(score, rules),
        len(score[0]),
        rules.positive_fraction,
        permutation=permutation,
        priority=priority,
    )
    pairs = []
    for g, row in enumerate(score):
        preferring = [q for q in kept if best[q] == g]
        candidates = preferring if rules.candidates == "strict" else range(len(row))
        ranked = sorted(candidates, key=lambda q: (-row[q], q))
        pairs += [(q, g) for q in ranked[: min(len(preferring), rules.k)]]
    return sorted(pairs, key=lambda pair: (score[pair[1]][pair[0]], -pair[1], -pair[0]))


def unite(one_to_one: Sequence[Pair], one_to_many: Sequence[Pair]) -> list[Pair]:
    """Return the union, in ascending query order, with one target a query.

    A one-to-many pair overrides the one-to-one pair of its query, and a later one-to-many pair an earlier one.
    """
    target_of: dict[int, int] = {}
    for q, g in one_to_one:
        target_of[q] = g
    for q, g in one_to_many:
        target_of[q] = g
    return sorted(target_of.items())


def _passes(score: float, rules: Rules) -> bool:
    return score > rules.threshold if rules.strict_threshold else score >= rules.threshold
