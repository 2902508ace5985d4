"""Checks of a COCO annotation file, column by column, so that a million annotations take seconds.

Every check has a fast path over a whole column (the set of its types, its extremes); rows are looked at one by one
only where that path finds a fault. Nothing is repaired here but missing ``area`` and ``iscrowd``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.report import AnnotationError, Problem
from lora_detr.errors import DataError

OnBadData = Literal["error", "skip"]
Row = dict[str, Any]

INT64_MAX = 2**63 - 1
SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class AnnotationColumns:
    """Usable annotations in file order, n of them.

    Attributes:
        rows: int64 [n], place in the file.
        ids: int64 [n].
        images: int64 [n], position of the image in the list given to ``check_annotations``.
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


class Findings:
    """Problems of one section (``images``, ...) of a file.

    Args:
        file: name of the file, for messages.
        section: key of the section.
        rows: what stands there. Rows that are no objects are reported and replaced by empty ones.
    """

    def __init__(self, file: str, section: str, rows: list[Any]) -> None:
        self.file = file
        self.section = section
        self.rows: list[Row] = rows
        self._found: list[tuple[int, Problem]] = []
        self._broken: set[int] = set()
        if not set(map(type, rows)) <= {dict}:
            self.rows = [row if type(row) is dict else {} for row in rows]
            for i, row in enumerate(rows):
                if type(row) is not dict:
                    self.add(i, "D02", f"must be an object, found {kind_of(row)}")
                    self._broken.add(i)

    def add(self, index: int, code: str, what: str) -> None:
        """Record a problem of row ``index``, unless the row as a whole is broken already."""
        if index in self._broken:
            return
        row = self.rows[index]
        keys = ("id", "image_id") if self.section == "annotations" else ("id",)
        known = ", ".join(f"{key}={shown(row[key])}" for key in keys if key in row)
        where = f"{self.file}: {self.section}[{index}]" + (f" ({known})" if known else "")
        self._found.append((index, Problem(code, f"{where}: {what}")))

    @property
    def problems(self) -> list[Problem]:
        """All problems, by row."""
        return [problem for _, problem in sorted(self._found, key=lambda item: item[0])]

    def integers(self, key: str, code: str) -> list[Any]:
        """Return a column; values that are no 64-bit integers are reported and replaced by None."""
        values: list[Any] = [row.get(key) for row in self.rows]
        if not values or (set(map(type, values)) == {int} and max(max(values), -min(values)) <= INT64_MAX):
            return values
        for i, value in enumerate(values):
            if type(value) is not int or abs(value) > INT64_MAX:
                values[i] = None
                missing = key not in self.rows[i]
                self.add(
                    i, code, f"missing key '{key}'" if missing else f"{key} must be {_INTEGER}, found {shown(value)}"
                )
        return values

    def repeated(self, values: list[Any], code: str, key: str) -> None:
        """Report every value that an earlier row has too, with both indices."""
        if len(set(values)) == len(values):
            return
        first: dict[Any, int] = {}
        for i, value in enumerate(values):
            if value is not None and first.setdefault(value, i) != i:
                self.add(i, code, f"{key} {shown(value)} is used by {self.section}[{first[value]}] already")


_INTEGER = "a 64-bit integer"
_MISSING = object()


def kind_of(value: object) -> str:
    """Return what JSON calls the type of a value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def shown(value: object) -> str:
    """Return a value as it stands in JSON, cut to 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_root(path: Path) -> Row:
    """Read the file and check its outermost structure.

    Raises:
        DataError: no such file; D01 with line and column: not JSON; D02: not an object of three lists.
    """
    try:
        root = json.loads(path.read_bytes().decode("utf-8-sig"), object_hook=_without_outline)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}",
            f"{path} is damaged or was not written to its end; get it again",
            code="D01",
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path.name}: not valid JSON: {error}", f"check {path}", code="D01") from error
    except OSError as error:
        raise DataError(f"{path}: the annotation file cannot be read: {error.strerror}", code="D01") from error
    problems = []
    if type(root) is not dict:
        problems.append(Problem("D02", f"{path.name}: the root must be an object, found {kind_of(root)}"))
    else:
        for key in SECTIONS:
            if key not in root:
                problems.append(Problem("D02", f"{path.name}: missing key '{key}'"))
            elif type(root[key]) is not list:
                problems.append(Problem("D02", f"{path.name}: '{key}' must be a list, found {kind_of(root[key])}"))
    if problems:
        raise AnnotationError(path, problems)
    return dict(root)


def _without_outline(value: Row) -> Row:
    """Forget outlines while parsing: they are most of a COCO file and would take gigabytes."""
    value.pop("segmentation", None)
    return value


def check_categories(found: Findings) -> dict[int, str]:
    """Return name by id (D02, D12)."""
    ids = found.integers("id", "D02")
    found.repeated(ids, "D12", "id")
    names = {}
    for i, row in enumerate(found.rows):
        name = row.get("name")
        if type(name) is not str:
            found.add(
                i, "D02", "missing key 'name'" if "name" not in row else f"name must be a string, found {shown(name)}"
            )
        elif ids[i] is not None:
            names[ids[i]] = name
    return names


def check_images(found: Findings) -> list[Any]:
    """Return the ids (D02, D03); file name, width and height of every row are of the right type afterwards."""
    ids = found.integers("id", "D02")
    found.repeated(ids, "D03", "id")
    for i, row in enumerate(found.rows):
        for key in ("width", "height"):
            size = row.get(key)
            if type(size) is not int or size < 1:
                missing = f"missing key '{key}'" if key not in row else f"{key} must be at least 1, found {shown(size)}"
                found.add(i, "D02", missing)
        if type(row.get("file_name")) is not str:
            found.add(i, "D02", f"file_name must be a string, found {shown(row.get('file_name'))}")
    return ids


def check_annotations(
    found: Findings, image_positions: dict[Any, int], categories: Iterable[int], *, on_bad_data: OnBadData
) -> AnnotationColumns:
    """Check all annotations (D04, D06, D07, D09, D10, D14, D15).

    Args:
        found: the rows; receives the problems.
        image_positions: position of an image in the caller's list, by image id.
        categories: known category ids.
        on_bad_data: ``skip`` leaves out rows whose box is malformed, negative or not finite, and counts them.

    Returns:
        The columns of the usable rows. Meaningless if problems were found.
    """
    # Each column becomes an array before the next is taken: a list of a million numbers is large.
    values = found.integers("id", "D14")
    found.repeated(values, "D04", "id")
    ids = _int64(values)

    values = found.integers("image_id", "D06")
    images = np.array([image_positions.get(image_id, -1) for image_id in values], dtype=np.int64)
    for i in np.flatnonzero(images < 0).tolist():
        if values[i] is not None:
            found.add(i, "D06", f"image_id {values[i]} is not in images")

    values = found.integers("category_id", "D10")
    known = set(categories)
    if not set(values) <= known:
        for i, category_id in enumerate(values):
            if category_id is not None and category_id not in known:
                found.add(i, "D10", f"category_id {category_id} is not in categories")
    category_ids = _int64(values)

    bad: dict[int, tuple[str, str]] = {}
    boxes = _boxes(found.rows, bad)
    if on_bad_data == "error":
        for i, (code, what) in bad.items():
            found.add(i, code, what)
    crowd, missing_iscrowd = _numbers(found, "iscrowd", "D15", 0.0, lambda v: type(v) is int and v in (0, 1), "0 or 1")
    areas, missing_area = _numbers(found, "area", "D14", np.nan, _is_area, "a number of at least 0")
    with np.errstate(over="ignore"):
        areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)

    good = np.ones(len(boxes), dtype=bool)
    good[list(bad)] = False
    return AnnotationColumns(
        np.flatnonzero(good),
        ids[good],
        images[good],
        category_ids[good],
        boxes[good],
        areas[good],
        crowd[good] == 1,
        missing_area,
        missing_iscrowd,
        len(bad),
    )


def _int64(values: Sequence[Any]) -> NDArray[np.int64]:
    try:
        return np.array(values, dtype=np.int64)
    except TypeError:  # a value was reported and is None
        return np.array([value or 0 for value in values], dtype=np.int64)


def _is_area(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < np.inf  # type: ignore[operator]


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
            what = _malformed(value, "bbox" in rows[i])
            if what:
                bad[i] = ("D09", what)
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


def _as_float(value: float) -> float:
    return float(value) if abs(value) < 1e308 else np.inf


def _malformed(value: object, present: bool) -> str:
    if not present:
        return "missing key 'bbox'"
    if type(value) is not list:
        return f"bbox must be a list of 4 numbers, found {kind_of(value)}"
    if len(value) != 4:
        return f"bbox must be a list of 4 numbers, found {len(value)}"
    wrong = [entry for entry in value if type(entry) not in (int, float)]
    return f"bbox must be a list of 4 numbers, found {kind_of(wrong[0])} {shown(wrong[0])}" if wrong else ""
