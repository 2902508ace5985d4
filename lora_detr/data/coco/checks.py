"""Checks of a COCO annotation file, column by column, so that a million annotations take seconds.

Every check has a fast path over a whole column (the set of its types, its extremes); rows are looked at one by one
only where that path finds a fault. Nothing is repaired here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lora_detr.data.coco.json_stream import JsonFault, JsonReader
from lora_detr.data.coco.report import AnnotationError, Problem
from lora_detr.errors import DataError
from lora_detr.regular_files import open_regular

OnBadData = Literal["error", "skip"]
Row = dict[str, Any]
Place = Callable[[str, int], str]

INT64_MAX = 2**63 - 1
SECTIONS = ("images", "annotations", "categories")
SHARED = 3
"""Rows from which a fault that most rows have is taken for one fault of the file."""

ROW_KEYS = ("id", "name", "file_name", "width", "height")


class Fault(NamedTuple):
    """Why a reader of another layout can give no box, in place of the box: code, end of the message, kind of cause."""

    code: str
    what: str
    kind: str = ""


class Found(NamedTuple):
    """A problem, the row that has it, and the kind of cause that other rows may share; empty for none."""

    row: int
    problem: Problem
    kind: str = ""


def by_cause(found: Iterable[Found], rows: int, section: str) -> list[Problem]:
    """Return problems by row; those of one kind are one problem where most rows have it, since it has one cause.

    Args:
        found: problems in any order.
        rows: how many rows the section has.
        section: its key.
    """
    ordered = sorted(found, key=lambda each: each.row)
    counts = Counter((each.problem.code, each.kind) for each in ordered if each.kind)
    shared = {key for key, count in counts.items() if count >= SHARED and 2 * count > rows}
    problems = []
    for each in ordered:
        key = (each.problem.code, each.kind)
        if key not in shared:
            problems.append(each.problem)
        elif counts[key]:
            more = f" (the same in {counts[key] - 1:,} more of {rows:,} {section})"
            problems.append(Problem(each.problem.code, each.problem.text + more))
            counts[key] = 0
    return problems


def no_place(section: str, index: int) -> str:
    """Return nothing: a row of a COCO file is found by its place in the section."""
    return ""


class Findings:
    """Problems of one section (``images``, ...) of a file.

    Args:
        file: name of the file, for messages.
        section: key of the section.
        rows: what stands there. Rows that are no objects are reported and replaced by empty ones.
        first: place of the first of them in the section.
        place: file and line of a row, by section and place in it; empty where these two say enough.
    """

    def __init__(self, file: str, section: str, rows: list[Any], first: int = 0, place: Place = no_place) -> None:
        self.file = file
        self.place = place
        self.section = section
        self.first = first
        self.rows: list[Row] = rows
        self._found: list[Found] = []
        self._broken: set[int] = set()
        if not set(map(type, rows)) <= {dict}:
            self.rows = [row if type(row) is dict else {} for row in rows]
            for i, row in enumerate(rows):
                if type(row) is not dict:
                    self.add(i, "D02", f"must be an object, found {kind_of(row)}")
                    self._broken.add(i)

    def add(self, index: int, code: str, what: str, kind: str = "") -> None:
        """Record a problem of row ``index``, unless the row as a whole is broken already.

        Args:
            index: of the row in ``rows``.
            code: kind of fault.
            what: end of the message.
            kind: rows of the same kind have one cause, such as ids that are text; empty for a fault of this row alone.
        """
        if index in self._broken:
            return
        row = self.first + index
        where = self.place(self.section, row) or f"{self.file}: {self.section}[{row}]{self.name_of(index)}"
        self._found.append(Found(index, Problem(code, f"{where}: {what}"), kind))

    def name_of(self, index: int) -> str:
        """Return the ids that a row has as `` (id=3)``, or an empty string."""
        row = self.rows[index]
        keys = ("id", "image_id") if self.section == "annotations" else ("id",)
        known = ", ".join(f"{key}={shown(row[key])}" for key in keys if key in row)
        return f" ({known})" if known else ""

    @property
    def problems(self) -> list[Problem]:
        """All problems, by row; those of one cause are one."""
        return by_cause(self._found, len(self.rows), self.section)

    @property
    def found(self) -> list[Found]:
        """All problems with the place of their row in the section."""
        return [each._replace(row=self.first + each.row) for each in self._found]

    def integers(self, key: str, code: str) -> list[Any]:
        """Return a column; values that are no 64-bit integers are reported and replaced by None."""
        values: list[Any] = [row.get(key) for row in self.rows]
        if not values or (set(map(type, values)) == {int} and max(max(values), -min(values)) <= INT64_MAX):
            return values
        for i, value in enumerate(values):
            values[i] = value = whole(value)
            if type(value) is not int or abs(value) > INT64_MAX:
                values[i] = None
                if key not in self.rows[i]:
                    self.add(i, code, f"missing key '{key}'", kind=key)
                else:
                    self.add(i, code, f"{key} must be {_INTEGER}, found {shown(value)}", kind=key + kind_of(value))
        return values

    def repeated(self, values: list[Any], code: str, key: str) -> None:
        """Report every value that an earlier row has too, with both indices."""
        if len(set(values)) == len(values):
            return
        first: dict[Any, int] = {}
        for i, value in enumerate(values):
            if value is not None and first.setdefault(value, i) != i:
                self.add(i, code, f"{key} {shown(value)} is used by {self.section}[{first[value]}] already")


_INTEGER, _TEXT = "a 64-bit integer", "file_name must be a string"


def whole(value: object) -> object:
    """Return a whole number that is written with a decimal point as an integer, anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= 2**53 else value


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
    other = _other_content(path)
    if other:
        raise DataError(f"{path}: expected COCO JSON, found {other}", code="D01")
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


# Begin of a file that is no JSON -> what it is, and what to do.
_CONTENTS = {
    b"\x1f\x8b": "a gzip file; unpack it with gunzip",
    b"PK\x03\x04": "a zip file; unpack it",
    b"BZh": "a bzip2 file; unpack it",
    b"\xfd7zXZ": "an xz file; unpack it",
    b"(\xb5/\xfd": "a zstd file; unpack it",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with git lfs pull",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"<": "XML or HTML; a COCO file is JSON",
}


def _other_content(path: Path) -> str:
    """Return what a file is that is no JSON, by its first bytes; empty if it may be JSON, or cannot be read."""
    try:
        with open_regular(path) as file:
            head = file.read(32)
    except OSError:
        return ""
    return next((what for begin, what in _CONTENTS.items() if head.startswith(begin)), "")


def _read_sections(path: Path, take: Callable[[list[Any]], None], outlines: bool) -> tuple[list[Problem], Row]:
    root: Row = {}
    faults = []
    with JsonReader(open_regular(path), outlines=outlines) as reader:
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


def check_images(found: Findings, *, reads_sizes: bool = False) -> list[Any]:
    """Return the ids (D02, D03); file name, width and height of every row are of the right type afterwards.

    With ``reads_sizes`` a row may lack width and height, which are read from the file later.
    """
    ids = found.integers("id", "D02")
    found.repeated(ids, "D03", "id")
    for i, row in enumerate(found.rows):
        for key in ("width", "height"):
            if key not in row:
                if not reads_sizes:
                    found.add(i, "D02", f"missing key '{key}'", kind=key)
                continue
            size = row[key] = whole(row[key])
            if type(size) is not int or size < 1:
                found.add(i, "D02", f"{key} must be at least 1, found {shown(size)}", kind=key + kind_of(size))
            elif size > INT64_MAX:
                found.add(i, "D02", f"{key} must be below 2^63, found {shown(size)}")
        name = row.get("file_name")
        if type(name) is not str:
            missing = "missing key 'file_name'" if "file_name" not in row else f"{_TEXT}, found {shown(name)}"
            found.add(i, "D02", missing, kind="file_name")
    return ids
