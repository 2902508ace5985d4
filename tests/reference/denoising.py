"""Denoising queries of Relation-DETR: one copy of one object after the other, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.reference.boxes import corners
from tests.reference.losses import Image


@dataclass(frozen=True)
class Draws:
    """Random numbers, one row for each copy: all objects of the batch, then all again, 2 * groups times."""

    label: list[float]
    label_class: list[int]
    sign: list[list[float]]
    distance: list[list[float]]


@dataclass(frozen=True)
class Query:
    """A noised object: its class, and its box as (cx, cy, w, h) logits."""

    label: int
    box: list[float]


@dataclass(frozen=True)
class Plan:
    """All denoising queries of a batch.

    Attributes:
        groups: number of groups.
        slots: of a group, positives then negatives.
        queries: by (image, slot among all groups); a slot that is missing is empty.
        positives: by image, (slot, object).
    """

    groups: int
    slots: int
    queries: dict[tuple[int, int], Query]
    positives: list[list[tuple[int, int]]]


def num_groups(images: Sequence[Image], num_queries: int) -> int:
    """Return how many groups the image of most objects leaves room for, at least 1."""
    most = max(len(image.labels) for image in images)
    return max(1, num_queries * most // max(most * most, 1))


def num_copies(images: Sequence[Image], num_queries: int) -> int:
    """Return how many noised objects, and so draws, a batch has."""
    return 2 * num_groups(images, num_queries) * sum(len(image.labels) for image in images)


def plan(
    images: Sequence[Image],
    draws: Draws,
    *,
    num_queries: int,
    label_noise: float,
    box_noise: float,
    epsilon: float,
) -> Plan:
    """Return the queries that the draws make of the objects."""
    groups = num_groups(images, num_queries)
    most = max(len(image.labels) for image in images)
    queries: dict[tuple[int, int], Query] = {}
    positives: list[list[tuple[int, int]]] = [[] for _ in images]
    row = 0
    for group in range(groups):
        for negative in (False, True):
            for b, image in enumerate(images):
                for t, (label, box) in enumerate(zip(image.labels, image.boxes, strict=True)):
                    slot = group * 2 * most + (most if negative else 0) + t
                    chosen = draws.label_class[row] if draws.label[row] < label_noise / 2 else label
                    moved = noised(box, draws.sign[row], draws.distance[row], negative, box_noise)
                    queries[b, slot] = Query(chosen, [logit(value, epsilon) for value in moved])
                    if not negative:
                        positives[b].append((slot, t))
                    row += 1
    return Plan(groups, 2 * most, queries, positives)


def noised(
    box: Sequence[float], sign: Sequence[float], distance: Sequence[float], negative: bool, box_noise: float
) -> list[float]:
    """Return a box whose corners moved, cut off at the image, as (cx, cy, w, h)."""
    _, _, width, height = box
    moved = []
    for i, corner in enumerate(corners(box)):
        half = (width if i % 2 == 0 else height) / 2
        step = (distance[i] + (1 if negative else 0)) * half * box_noise
        moved.append(min(max(corner + (step if sign[i] == 1 else -step), 0.0), 1.0))
    left, top, right, bottom = moved
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def logit(value: float, epsilon: float) -> float:
    """Return the inverse sigmoid of a value cut off at 0 and 1, with both sides of the fraction at least epsilon."""
    value = min(max(value, 0.0), 1.0)
    return math.log(max(value, epsilon) / max(1 - value, epsilon))


def blocked(attending: int, attended: int, groups: int, slots: int) -> bool:
    """Return whether one query may not look at another; primary queries stand behind all noised ones."""

    def group_of(query: int) -> int | None:
        return query // slots if query < groups * slots else None

    if group_of(attended) is None:
        return False
    return group_of(attending) != group_of(attended)
