"""Images that show almost the same, and a division of images that keeps them together.

Frames of a video, copies of another size or quality: with one of them in training and another in validation, what is
measured is too good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.images import Look

DISTANCE = 3
"""Bits of 64 in which the hashes of two such images differ at most (see ``difference_hash``)."""

ALIKE = 0.9
"""Correlation of the small pictures of two such images, at least. Copies that were resized, compressed, brightened or
cropped a little have 0.93 and more."""

_ROWS = 512  # compared at once with all others of a group

_BAND = 16  # bits: of four bands, one at least is the same where three bits differ


def groups_of(hashes: Sequence[int]) -> NDArray[np.int64]:
    """Return the group of each image, numbered by first appearance; two images of almost the same hash share one.

    Whatever is near one image of a group is in it too, so two images of a group may differ more.
    """
    unique, inverse = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    parent = list(range(len(unique)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for shift in range(0, 64, _BAND):
        band = (unique >> np.uint64(shift)) & np.uint64(2**_BAND - 1)
        order = np.argsort(band, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for place, i in enumerate(run[:-1].tolist()):
                rest = run[place + 1 :]
                for j in rest[_bits(unique[rest] ^ unique[i]) <= DISTANCE].tolist():
                    parent[root(j)] = root(i)
    roots = np.array([root(i) for i in range(len(unique))], dtype=np.int64)[inverse.reshape(-1)]
    _, first, numbers = np.unique(roots, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), dtype=np.int64)
    ranks[np.argsort(first, kind="stable")] = np.arange(len(first))
    return ranks[numbers.reshape(-1)]


def earlier_twins(looks: Sequence[Look]) -> NDArray[np.int64]:
    """Return for each image the place of the first one before it that shows almost the same; -1 where there is none.

    Hashes of smooth images, such as skies, are near by chance; so the small pictures are compared too.
    """
    found = np.full(len(looks), -1, dtype=np.int64)
    groups = groups_of([look.hash for look in looks])
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(members) < 2:
            continue
        grey = np.array([np.frombuffer(looks[i].grey, dtype=np.uint8) for i in members.tolist()], dtype=np.float32)
        grey -= grey.mean(axis=1, keepdims=True)
        # As if each had a little noise, the same in all: those of a single colour are alike then.
        sizes = np.sqrt((grey**2).sum(axis=1) + grey.shape[1])
        for start in range(0, len(members), _ROWS):
            rows = slice(start, start + _ROWS)
            alike = (grey[rows] @ grey.T + grey.shape[1]) / (sizes[rows, None] * sizes) >= ALIKE
            first = alike.argmax(axis=1)  # an image is like itself
            own = np.arange(len(members))[rows]
            found[members[rows]] = np.where(first < own, members[first], -1)
    return found


def chosen_groups(groups: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which images make up about a share of all, whole groups by chance; at least one, and never all of them.

    Args:
        groups: of each image, see ``groups_of``; of at least two kinds.
        share: of the images, between 0 and 1.
        seed: of the choice.
    """
    sizes = np.bincount(groups)
    wanted = min(max(1, round(share * len(groups))), len(groups) - 1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen: list[int] = []
    count = 0
    for group in order.tolist():
        if count + sizes[group] <= wanted:
            chosen.append(group)
            count += int(sizes[group])
    if not chosen:  # every group is larger than what is wanted
        chosen = [int(np.argmin(sizes))]
    return np.isin(groups, chosen)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many bits of each value are set."""
    bits: NDArray[np.int64] = np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
    return bits
