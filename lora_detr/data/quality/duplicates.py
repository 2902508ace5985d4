"""Objects that are annotated twice: a detector is punished for whichever of the two it does not find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.quality.finding import Finding
from lora_detr.data.quality.places import object_places
from lora_detr.errors import counted

SAME_IOU = 0.95
"""IoU from which two boxes of one class in one image are taken for one object."""

_COLUMNS = 1000

Indices = NDArray[np.int64]


def duplicate_finding(split: CocoSplit) -> list[Finding]:
    """Return how many objects repeat an earlier one of their image; nothing if none does."""
    table = split.records
    images = np.repeat(np.arange(len(table)), table.object_counts)
    repeats = repeated_boxes(images, table.category_ids, table.boxes_xyxy_pixels.astype(np.float64))
    if not len(repeats):
        return []
    found = f"{counted(len(repeats), 'object repeats', 'objects repeat')} another of its class and image"
    return [
        Finding(
            "Q04",
            "warning",
            len(repeats),
            f"{split.report.file}: {found} (IoU at least {SAME_IOU:g})",
            object_places(split, repeats.tolist()),
            "remove one of each two; loradetr doctor --fix does",
        )
    ]


def repeated_boxes(images: Indices, classes: Indices, boxes: NDArray[np.float64]) -> Indices:
    """Return which boxes repeat an earlier one of the same image and class that repeats none itself; rising.

    Args:
        images: int64 [n], any number that stands for the image.
        classes: int64 [n].
        boxes: [n, 4], corners x1, y1, x2, y2; those without area repeat nothing.
    """
    repeats: set[int] = set()
    for first, second in _pairs(images, classes, boxes):
        if first not in repeats:
            repeats.add(second)
    return np.array(sorted(repeats), dtype=np.int64)


def _pairs(images: Indices, classes: Indices, boxes: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return pairs of boxes that show the same, the lower index first, by the second index and then by the first.

    In one image and class, boxes by their left side: of two that overlap so much, the left sides differ by a twentieth
    of the width, so only few neighbours need be compared. Left sides are counted in a thousand columns, so that one
    whole number is sorted by: three keys take ten times as long.
    """
    if not len(boxes):
        return []
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    left, widest = boxes[:, 0].min(), max(1e-9, float(np.ptp(boxes[:, 0])))

    def column(x: NDArray[np.float64]) -> Indices:
        return np.asarray(np.minimum((x - left) / widest * _COLUMNS, _COLUMNS).astype(np.int64))

    kinds, kind = np.unique(classes, return_inverse=True)
    groups = np.unique(images, return_inverse=True)[1].reshape(-1) * len(kinds) + kind.reshape(-1)
    keys = groups * (_COLUMNS + 1) + column(boxes[:, 0])
    reach = groups * (_COLUMNS + 1) + column(boxes[:, 0] + (1 / SAME_IOU - 1) * sides[:, 0])
    order = np.argsort(keys)
    keys, reach, boxes, areas = keys[order], reach[order], boxes[order], areas[order]
    active = np.flatnonzero(areas > 0)
    pairs: list[tuple[int, int]] = []
    for lag in range(1, len(order)):
        active = active[active + lag < len(order)]
        other = active + lag
        near = keys[other] <= reach[active]
        active, other = active[near], other[near]
        if not len(active):
            break
        low, high = np.maximum(boxes[active, :2], boxes[other, :2]), np.minimum(boxes[active, 2:], boxes[other, 2:])
        common = np.clip(high - low, 0, None).prod(axis=1)
        same = common >= SAME_IOU * (areas[active] + areas[other] - common)
        ends = np.sort(np.stack((order[active[same]], order[other[same]]), axis=1), axis=1)
        pairs += [(int(first), int(second)) for first, second in ends.tolist()]
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))
