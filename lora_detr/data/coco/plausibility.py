"""Data that is well-formed and still of no use: boxes of another convention, and splits that teach nothing.

A single box proves nothing, so boxes are judged by all of a file: those of another convention, read as x, y, width and
height in pixels, reach beyond their images or crowd into a corner, and read as what they are they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.quality.finding import Finding
from lora_detr.errors import counted, listed, printable

Boxes = NDArray[np.float64]

BOX_REMEDY = "convert them to x, y, width, height in pixels"

STICKING_OUT = 0.2
"""Share of boxes beyond their image from which a whole file is doubted, and at least ``FEW`` of them."""

FEW, MANY = 3, 20
"""Boxes from which reaching beyond the image counts, and from which crowding in a corner does."""

FITTING = 0.99
"""Share of boxes that must make sense in a convention for it to be named."""

RARE, IMBALANCED = 100, 50
"""A class with fewer objects is rare, if another has so many times as many. COCO's rarest has 198."""

IMBALANCE_REMEDY = "--set data.train.sampling=repeat-factor shows rare classes more often"

# Smaller images may have all of their objects in a few pixels.
_SMALLEST_SIDE = 16
# Numbers that coordinates are relative to, with what uses them.
_UNITS = (
    (1.0, "0 to 1"),
    (100.0, "0 to 100, percent"),
    (1000.0, "0 to 1000"),
    (1024.0, "0 to 1024"),
)


def _xywh(b: Boxes) -> Boxes:
    return np.concatenate((b[:, :2], b[:, :2] + b[:, 2:]), axis=1)


def _centred(b: Boxes) -> Boxes:
    return np.concatenate((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), axis=1)


# Convention -> corners x1, y1, x2, y2 of boxes [n, 4]. Those that are in wider use come first.
_READINGS: dict[str, Callable[[Boxes], Boxes]] = {
    "x1, y1, x2, y2": lambda b: b,
    "x, y, width, height": _xywh,
    "centre x, centre y, width, height": _centred,
    "y1, x1, y2, x2": lambda b: b[:, [1, 0, 3, 2]],
    # Both are the same: sides of boxes, or of their images.
    "y, x, height, width, or width and height of the images are exchanged": lambda b: _xywh(b[:, [1, 0, 3, 2]]),
    "x1, x2, y1, y2": lambda b: b[:, [0, 2, 1, 3]],
}


def box_doubt(boxes: Boxes, sizes: Boxes, areas: NDArray[np.float64]) -> str:
    """Say why the boxes of a file do not look like x, y, width, height in pixels; empty if they may be.

    Args:
        boxes: [n, 4] as stored, finite, maybe too large to be added; n may be 0.
        sizes: [n, 2], width and height in pixels of the image of each.
        areas: [n] as stored, or width times height where the file has none.
    """
    if not len(boxes):
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        return _doubt(boxes, sizes, areas)


def _doubt(boxes: Boxes, sizes: Boxes, areas: NDArray[np.float64]) -> str:
    relative = _relative(boxes, sizes)
    if relative:
        return relative
    beyond = _misfits(_xywh(boxes), sizes)
    outside = int(beyond.sum())
    if outside >= FEW and outside >= STICKING_OUT * len(boxes):
        named = _reading(boxes, sizes)
        found = f"{outside:,} of {counted(len(boxes), 'box', 'boxes')} reach beyond their image"
        return f"{found}: {_looks_like(named)}" if named else f"{found}: they may be of images of another size"
    corners_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    as_corners = np.isclose(areas, corners_area, rtol=0.01) & ~np.isclose(areas, boxes[:, 2] * boxes[:, 3], rtol=0.01)
    if as_corners.sum() >= FEW and as_corners.mean() >= FITTING and not _is_poor(boxes, sizes):
        return f"areas are those of corners: {_looks_like('x1, y1, x2, y2')}"
    return ""


def _looks_like(convention: str) -> str:
    return f"they look like {convention}, not x, y, width, height in pixels"


def _relative(boxes: Boxes, sizes: Boxes) -> str:
    """Name the unit and the convention of boxes that are relative to their image; empty if they need not be."""
    lowest, highest = float(boxes.min()), float(boxes.max())
    for unit, name in _UNITS:
        # Exporters round, so a little beyond the end is common.
        if highest > unit * 1.01 or lowest < -unit * 0.01:
            continue
        reading = _reading(boxes, np.full_like(sizes, unit))
        if unit == 1:
            suspicious = bool(np.median(sizes) >= _SMALLEST_SIDE)
        elif len(boxes) < MANY or not reading:
            suspicious = False
        else:
            # They fill the unit in both directions, but not the images: those are larger, or boxes reach beyond them.
            used = float(_READINGS[reading](boxes)[:, 2:].max(axis=0).min())
            larger = float(np.median(sizes, axis=0).min()) >= 1.3 * unit
            suspicious = used >= 0.9 * unit and (
                larger or (_is_poor(_xywh(boxes), sizes, STICKING_OUT) and not _reading(boxes, sizes))
            )
        if suspicious:
            found = f"{reading or 'coordinates'} relative to the image ({name})"
            return f"no number is above {highest:g}: {_looks_like(found)}"
    return ""


def _reading(boxes: Boxes, sizes: Boxes) -> str:
    """Return the first convention in which nearly all boxes lie in images of these sizes; empty if there is none."""
    return next((name for name, corners in _READINGS.items() if not _is_poor(corners(boxes), sizes)), "")


def _misfits(corners: Boxes, sizes: Boxes) -> NDArray[np.bool_]:
    """Return which corners [n, 4] are no box, or reach beyond images of sizes [n, 2] by more than rounding."""
    slack = np.minimum(np.maximum(2.0, 0.01 * sizes), 0.02 * sizes)
    beyond = (corners[:, :2] < -slack) | (corners[:, 2:] > sizes + slack)
    return np.asarray((beyond | (corners[:, 2:] < corners[:, :2])).any(axis=1))


def _is_poor(corners: Boxes, sizes: Boxes, allowed: float = 1 - FITTING) -> bool:
    return float(_misfits(corners, sizes).mean()) > allowed


def split_doubts(
    file: str, objects: Sequence[tuple[str, int]], crowd: int, *, other: str = "", elsewhere: Sequence[int] = ()
) -> list[Finding]:
    """Find why a split can teach or measure little.

    Args:
        file: name of the annotation file.
        objects: name and number of objects of each class.
        crowd: crowd regions.
        other: the other annotation file; empty for the training split.
        elsewhere: objects of the same classes in ``other``.
    """
    total = sum(count for _, count in objects)
    if not total:
        holds = f"only crowd regions ({crowd:,})" if crowd else "no object"
        loss = "AP cannot be measured" if other else "nothing can be learnt from it"
        return [Finding("Q08", "warning", 1, f"{file} has {holds}: {loss}", remedy="check the export of the file")]
    if not other:
        shown = [count for _, count in objects if count]
        few = f"{file} has a single object of each class: too few to learn from"
        return [Finding("Q08", "warning", len(shown), few, remedy="annotate more")] if max(shown) == 1 else []
    unseen = [name for (name, count), seen in zip(objects, elsewhere, strict=True) if count and not seen]
    if not unseen:
        return []
    text = f"{file}: {_classes(unseen)} without an object in {other}: their AP will be 0, which lowers the mean"
    return [Finding("Q05", "warning", len(unseen), text, tuple(unseen), "divide the images otherwise")]


def absent_classes(file: str, objects: Sequence[tuple[str, int]], elsewhere: Sequence[int]) -> list[Finding]:
    """Find classes that neither the training split nor the validation split has an object of.

    Args:
        file: name of the training file.
        objects: name and number of objects of each class there.
        elsewhere: objects of the same classes in the validation split.
    """
    absent = [name for (name, count), other in zip(objects, elsewhere, strict=True) if not count and not other]
    if not absent or len(absent) == len(objects):  # then there is no object at all, which is another finding
        return []
    text = f"{file}: {_classes(absent)} without any object: the model gets outputs that it never uses"
    return [Finding("Q06", "info", len(absent), text, tuple(absent), "remove them from the categories")]


def imbalance(file: str, objects: Sequence[tuple[str, int]]) -> list[Finding]:
    """Find classes that have too few objects beside another one; those without any do not count.

    Args:
        file: name of the annotation file.
        objects: name and number of objects of each class; may be empty.
    """
    counts = sorted((count, name) for name, count in objects if count)
    many, frequent = counts[-1] if counts else (0, "")
    rare = [(count, name) for count, name in counts if count < RARE and IMBALANCED * count <= many]
    if not rare:
        return []
    rarest = listed(f"{name} {count:,}" for count, name in rare)
    text = (
        f"{file}: {counted(len(rare), 'class has', 'classes have')} few objects ({rarest}) beside "
        f"{printable(frequent)} ({many:,})"
    )
    places = tuple(f"{name}: {counted(count, 'object')}" for count, name in rare)
    return [Finding("Q07", "warning", len(rare), text, places, IMBALANCE_REMEDY)]


def _classes(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'class', 'classes')} ({listed(names)})"
