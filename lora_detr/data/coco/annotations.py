"""Annotations as columns: checked piece by piece while the file is read, and against the other sections at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.coco.checks import (
    Fault,
    Findings,
    Found,
    OnBadData,
    Place,
    Row,
    by_cause,
    kind_of,
    no_place,
    shown,
)
from lora_detr.data.coco.report import Problem
from lora_detr.errors import counted

_MISSING = object()


@dataclass(frozen=True)
class AnnotationColumns:
    """Usable annotations in file order, n of them.

    Attributes:
        rows: int64 [n], place in the file.
        ids: int64 [n].
        images: int64 [n], position of the image in the list given to ``columns``.
        categories: int64 [n], original category ids.
        boxes: float64 [n, 4], x, y, width, height in pixels as stored; finite, width and height >= 0.
        areas: float64 [n], pixels; width times height where missing.
        crowd: bool [n].
        missing_area: how many rows had no ``area``.
        missing_iscrowd: how many rows had no ``iscrowd``.
        bad_boxes: how many rows were left out for their box.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    missing_area: int
    missing_iscrowd: int
    bad_boxes: int

    def of_images(self, kept: NDArray[np.bool_]) -> AnnotationColumns:
        """Return the rows of some images, whose positions are then those among the kept ones.

        Args:
            kept: bool [number of images].
        """
        chosen = kept[self.images]
        parts = {
            name: getattr(self, name)[chosen]
            for name in ("rows", "ids", "images", "categories", "boxes", "areas", "crowd")
        }
        parts["images"] = (np.cumsum(kept) - 1)[parts["images"]]
        return replace(self, **parts)

    def in_pixels(self, sizes: NDArray[np.float64]) -> AnnotationColumns:
        """Return the same rows with boxes and areas in pixels, where they are shares of their images.

        Args:
            sizes: [number of images, 2], width and height.
        """
        scale = sizes[self.images]
        return replace(self, boxes=self.boxes * np.tile(scale, 2), areas=self.areas * scale.prod(axis=1))


@dataclass(frozen=True)
class _Piece:
    """Columns of some rows, as in ``AnnotationColumns``, with zeros where a value is unusable."""

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]


class AnnotationChecker:
    """Takes the rows of ``annotations`` piece by piece and keeps their columns and faults.

    Args:
        file: name of the file, for messages.
        on_bad_data: ``skip`` leaves out rows whose box is malformed, negative or not finite, and counts them.
        place: see ``Findings``.
    """

    def __init__(self, file: str, on_bad_data: OnBadData, place: Place = no_place) -> None:
        self.file = file
        self.place = place
        self.on_bad_data = on_bad_data
        self._pieces: list[_Piece] = []
        self._count = self._missing_area = self._missing_iscrowd = 0
        self._found: list[Found] = []
        self._bad: list[int] = []
        self._unusable: dict[str, list[int]] = {"id": [], "image_id": [], "category_id": []}
        self._names: dict[int, str] = {}  # of rows whose ids are no numbers

    def add(self, rows: list[Any]) -> None:
        """Check the next rows by themselves (D06, D07, D09, D10, D14, D15)."""
        found = Findings(self.file, "annotations", rows, self._count, self.place)
        ids = self._integers(found, "id", "D14")
        image_ids = self._integers(found, "image_id", "D06")
        categories = self._integers(found, "category_id", "D10")
        bad: dict[int, tuple[str, str]] = {}
        boxes = _boxes(found.rows, bad)
        if self.on_bad_data == "error":
            for i, (code, what) in bad.items():
                found.add(i, code, what, kind=_box_cause(found.rows[i].get("bbox")))
        crowd, without_crowd = _numbers(
            found, "iscrowd", "D15", 0.0, lambda v: type(v) is int and v in (0, 1), "0 or 1"
        )
        areas, without_area = _numbers(found, "area", "D14", np.nan, _is_area, "a finite number of at least 0")
        with np.errstate(over="ignore"):
            areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
        self._pieces.append(_Piece(ids, image_ids, categories, boxes, areas, crowd == 1))
        self._found += found.found
        self._bad += [self._count + i for i in bad]
        self._missing_area += without_area
        self._missing_iscrowd += without_crowd
        self._count += len(rows)

    def columns(
        self, image_ids: Iterable[int], categories: Iterable[int], *, sound: Collection[str] = ("images", "categories")
    ) -> AnnotationColumns:
        """Check the rows against each other and the other sections (D04, D06, D10), once all were added.

        Args:
            image_ids: known images; each once and rising.
            categories: known category ids.
            sound: sections without a problem of their own; what is missing in another one is no fault of the rows.

        Returns:
            The columns of the usable rows. Meaningless if problems were found.
        """
        ids, images, known_images = self._join("ids"), self._join("image_ids"), np.array([*image_ids], dtype=np.int64)
        self._check_repeated(ids, images)
        positions = np.searchsorted(known_images, images)
        positions[positions == len(known_images)] = 0
        there = known_images[positions] == images if len(known_images) else np.zeros(len(images), dtype=bool)
        if "images" in sound:
            self._check_known("image_id", "D06", "images", images, there, ids, images)
        category_ids = self._join("categories")
        known = np.isin(category_ids, np.array([*categories], dtype=np.int64))
        if "categories" in sound:
            self._check_known("category_id", "D10", "categories", category_ids, known, ids, images)
        rows = np.delete(np.arange(self._count), self._bad)
        good = rows if self._bad else slice(None)  # a slice copies nothing
        return AnnotationColumns(
            rows,
            ids[good],
            positions[good],
            category_ids[good],
            self._join("boxes").reshape(-1, 4)[good],
            self._join("areas")[good],
            self._join("crowd").astype(bool)[good],
            self._missing_area,
            self._missing_iscrowd,
            len(self._bad),
        )

    @property
    def problems(self) -> list[Problem]:
        """All problems, by row; those of one cause are one."""
        return by_cause(self._found, self._count, "annotations")

    def _integers(self, found: Findings, key: str, code: str) -> NDArray[np.int64]:
        values = found.integers(key, code)
        try:
            return np.array(values, dtype=np.int64)
        except TypeError:  # a value was reported and is None
            unusable = [i for i, value in enumerate(values) if value is None]
            self._unusable[key] += [found.first + i for i in unusable]
            self._names.update((found.first + i, found.name_of(i)) for i in unusable)
            return np.array([value or 0 for value in values], dtype=np.int64)

    def _join(self, name: str) -> NDArray[Any]:
        parts = [getattr(piece, name) for piece in self._pieces]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _check_repeated(self, ids: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        usable = np.ones(len(ids), dtype=bool)
        usable[self._unusable["id"]] = False
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        again = np.flatnonzero(ids[rows][1:] == ids[rows][:-1]) + 1
        if not len(again):
            return
        first: dict[int, int] = {}
        for place in again.tolist():
            row, value = int(rows[place]), int(ids[rows[place]])
            before = first.setdefault(value, int(rows[place - 1]))
            self._add(row, "D04", f"id {value} is used by annotations[{before}] already", ids, images)

    def _check_known(
        self,
        key: str,
        code: str,
        section: str,
        values: NDArray[np.int64],
        known: NDArray[np.bool_],
        ids: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> None:
        """Report values that are not in their section, each once, but for those that were reported as no integers."""
        if known.all():
            return
        reported = set(self._unusable[key])
        rows: dict[int, list[int]] = {}
        for row in np.flatnonzero(~known).tolist():
            if row not in reported:
                rows.setdefault(int(values[row]), []).append(row)
        for value, having in rows.items():
            more = f" ({counted(len(having), 'annotation')})" if len(having) > 1 else ""
            self._add(having[0], code, f"{key} {value} is not in {section}{more}", ids, images)

    def _add(self, row: int, code: str, what: str, ids: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        name = self._names.get(row, f" (id={ids[row]}, image_id={images[row]})")
        where = self.place("annotations", row) or f"{self.file}: annotations[{row}]{name}"
        self._found.append(Found(row, Problem(code, f"{where}: {what}")))


def _is_area(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max  # type: ignore[operator]


def _numbers(
    found: Findings, key: str, code: str, default: float, allowed: Callable[[Any], bool], expected: str
) -> tuple[NDArray[np.float64], int]:
    """Return an optional column, ``default`` where missing, and how many were missing."""
    values = [row.get(key, _MISSING) for row in found.rows]
    missing = values.count(_MISSING)
    # Values of one numeric type are allowed in a range, so the extremes tell.
    plain = set(map(type, values)) in ({int}, {float})
    if not (plain and allowed(min(values)) and allowed(max(values)) and not any(map(isnan, values))):
        for i, value in enumerate(values):
            if value is _MISSING:
                values[i] = default
            elif not allowed(value):
                values[i] = default
                found.add(i, code, f"{key} must be {expected}, found {shown(value)}")
    return np.array(values, dtype=np.float64).reshape(-1), missing


def _boxes(rows: list[Row], bad: dict[int, tuple[str, str]]) -> NDArray[np.float64]:
    """Return [n, 4]; zeros where a box is unusable, which ``bad`` then holds as (code, what) by row."""
    values = [row.get("bbox") for row in rows]
    plain = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}  # type: ignore[arg-type]
    if not plain or not set(map(type, chain.from_iterable(values))) <= {int, float}:  # type: ignore[arg-type]
        for i, value in enumerate(values):
            fault = value if type(value) is Fault else Fault("D09", _malformed(value, "bbox" in rows[i]))
            if fault.what:
                bad[i] = (fault.code, fault.what)
                values[i] = [0.0, 0.0, 0.0, 0.0]
    flat = chain.from_iterable(values)  # type: ignore[arg-type]
    try:
        boxes = np.fromiter(flat, dtype=np.float64, count=4 * len(values)).reshape(-1, 4)
    except OverflowError:  # an integer too large for a float counts as infinite
        boxes = np.array([[_as_float(v) for v in value] for value in values]).reshape(-1, 4)  # type: ignore[union-attr]
    finite = np.isfinite(boxes).all(axis=1)
    for i in np.flatnonzero(~finite).tolist():
        bad[i] = ("D07", f"bbox {shown(values[i])} must be finite")
    for i in np.flatnonzero(finite & (boxes[:, 2:] < 0).any(axis=1)).tolist():
        side, value = ("width", values[i][2]) if boxes[i, 2] < 0 else ("height", values[i][3])  # type: ignore[index]
        bad[i] = ("D07", f"bbox {side} {shown(value)} must be > 0")
    boxes[list(bad)] = 0.0
    return boxes


def _box_cause(value: object) -> str:
    """Return what rows with the same cause have in common: a box of another type or length, but no bad number."""
    if type(value) is Fault:
        return value.kind
    if type(value) is not list:
        return f"bbox {kind_of(value)}"
    kinds = ",".join(sorted({kind_of(entry) for entry in value}))
    return f"bbox {len(value)}" if len(value) != 4 else "" if kinds == "a number" else f"bbox of {kinds}"


def _as_float(value: float) -> float:
    return float(value) if abs(value) <= sys.float_info.max else np.inf


def _malformed(value: object, present: bool) -> str:
    if not present:
        return "missing key 'bbox'"
    if type(value) is not list:
        return f"bbox must be a list of 4 numbers, found {kind_of(value)}"
    if len(value) != 4:
        return f"bbox must be a list of 4 numbers, found {len(value)}"
    wrong = [entry for entry in value if type(entry) not in (int, float)]
    return f"bbox must be a list of 4 numbers, found {kind_of(wrong[0])} {shown(wrong[0])}" if wrong else ""
