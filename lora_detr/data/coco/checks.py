"""Checks of a COCO annotation file, column by column, so that a million annotations take seconds.

Every check has a fast path over a whole column (the set of its types, its extremes); rows are looked at one by one
only where that path finds a fault. Nothing is repaired here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lora_detr.data.coco.json_stream import JsonFault, JsonReader
from lora_detr.data.coco.report import AnnotationError, Problem
from lora_detr.errors import DataError

OnBadData = Literal["error", "skip"]
Row = dict[str, Any]

INT64_MAX = 2**63 - 1
SECTIONS = ("images", "annotations", "categories")
ROW_KEYS = ("id", "name", "file_name", "width", "height")


class Findings:
    """Problems of one section (``images``, ...) of a file.

    Args:
        file: name of the file, for messages.
        section: key of the section.
        rows: what stands there. Rows that are no objects are reported and replaced by empty ones.
        first: place of the first of them in the section.
    """

    def __init__(self, file: str, section: str, rows: list[Any], first: int = 0) -> None:
        self.file = file
        self.section = section
        self.first = first
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
        where = f"{self.file}: {self.section}[{self.first + index}]{self.name_of(index)}"
        self._found.append((index, Problem(code, f"{where}: {what}")))

    def name_of(self, index: int) -> str:
        """Return the ids that a row has as `` (id=3)``, or an empty string."""
        row = self.rows[index]
        keys = ("id", "image_id") if self.section == "annotations" else ("id",)
        known = ", ".join(f"{key}={shown(row[key])}" for key in keys if key in row)
        return f" ({known})" if known else ""

    @property
    def problems(self) -> list[Problem]:
        """All problems, by row."""
        return [problem for _, problem in self.found]

    @property
    def found(self) -> list[tuple[int, Problem]]:
        """All problems with the place of their row in the section, by row."""
        return [(self.first + index, problem) for index, problem in sorted(self._found, key=lambda item: item[0])]

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


def kind_of(value: object) -> str:
    """Return what JSON calls the type of a value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def shown(value: object) -> str:
    """Return a value as it stands in JSON, cut to 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_root(path: Path, take: Callable[[list[Any]], None] | None = None) -> Row:
    """Read the file and check its outermost structure.

    Args:
        path: the annotation file.
        take: given the rows of ``annotations``, piece by piece; without it they are read and forgotten.

    Returns:
        The rows of ``images``, with the keys that are used, and of ``categories``.

    Raises:
        DataError: no such file; D01 with line and column: not JSON; D02: not an object of three lists.
    """
    try:
        try:
            problems, root = _read_sections(path, take or _forget, outlines=False)
        except JsonFault:
            problems, root = _read_sections(path, _forget, outlines=True)  # for the place of the fault
    except JsonFault as fault:
        raise DataError(
            f"{path.name}:{fault.line}:{fault.column}: not valid JSON: {fault.message}",
            f"{path} is damaged or was not written to its end; get it again",
            code="D01",
        ) from fault
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path.name}: not valid JSON: {error}", f"check {path}", code="D01") from error
    except OSError as error:
        raise DataError(f"{path}: the annotation file cannot be read: {error.strerror}", code="D01") from error
    if problems:
        raise AnnotationError(path, problems)
    return root


def _read_sections(path: Path, take: Callable[[list[Any]], None], outlines: bool) -> tuple[list[Problem], Row]:
    root: Row = {}
    faults = []
    with JsonReader(path.open("rb"), outlines=outlines) as reader:
        if reader.peek() != "{":
            faults.append(f"the root must be an object, found {kind_of(reader.value())}")
        else:
            for key in reader.members():
                if key in root:
                    faults.append(f"key '{key}' appears twice")
                root[key] = None
                if key not in SECTIONS:
                    reader.value()
                elif reader.peek() != "[":
                    faults.append(f"'{key}' must be a list, found {kind_of(reader.value())}")
                elif key == "annotations":
                    for rows in reader.elements():
                        take(rows)
                else:
                    root[key] = [row for rows in reader.elements() for row in map(_slim, rows)]
            faults += [f"missing key '{key}'" for key in SECTIONS if key not in root]
        reader.end()
    return [Problem("D02", f"{path.name}: {fault}") for fault in faults], root


def _forget(rows: list[Any]) -> None:
    pass


def _slim(row: Any) -> Any:
    """Forget keys that are not used, such as addresses: a hundred thousand images have many."""
    return {key: row[key] for key in ROW_KEYS if key in row} if type(row) is dict else row


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
        elif any("\ud800" <= letter <= "\udfff" for letter in name):
            found.add(i, "D02", f"name {shown(name)} holds half a character, which no text can hold")
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
            elif size > INT64_MAX:
                found.add(i, "D02", f"{key} must be below 2^63, found {shown(size)}")
        if type(row.get("file_name")) is not str:
            found.add(i, "D02", f"file_name must be a string, found {shown(row.get('file_name'))}")
    return ids
