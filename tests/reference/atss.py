"""ATSS assignment of one image, target by target and query by query, from boxes (cx, cy, w, h).

Of equal distances the lower query wins, of equal IoUs the lower target.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from tests.reference.boxes import iou

Box = Sequence[float]


def assign(references: Sequence[Box], targets: Sequence[Box], k: int) -> list[tuple[int, int]]:
    """Return the (query, target) pairs, sorted."""
    target_of: dict[int, int] = {}
    for t, target in enumerate(targets):
        nearest = sorted(range(len(references)), key=lambda q: (_squared_distance(references[q], target), q))[:k]
        overlaps = [iou(references[q], target) for q in nearest]
        mean = sum(overlaps) / len(overlaps)
        deviation = 0.0
        if len(overlaps) > 1:
            deviation = sqrt(sum((overlap - mean) ** 2 for overlap in overlaps) / (len(overlaps) - 1))
        if len(set(overlaps)) == 1:  # whatever rounding makes of their mean
            mean, deviation = overlaps[0], 0.0
        for q, overlap in zip(nearest, overlaps, strict=True):
            if overlap < mean + deviation or overlap == 0 or not _inside(references[q], target):
                continue
            if q not in target_of or overlap > iou(references[q], targets[target_of[q]]):
                target_of[q] = t
    return sorted(target_of.items())


def _squared_distance(box: Box, target: Box) -> float:
    return (box[0] - target[0]) ** 2 + (box[1] - target[1]) ** 2


def _inside(box: Box, target: Box) -> bool:
    return all(target[i] - target[i + 2] / 2 < box[i] < target[i] + target[i + 2] / 2 for i in (0, 1))
