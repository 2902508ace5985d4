"""The one reader of files that a run appends to: what makes sense is kept, and what does not is reported in one line.

A power failure leaves zeros, half a line, or bytes of something else; a process that is killed leaves half a line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_detr.errors import OutputError, counted
from lora_detr.regular_files import open_regular

T = TypeVar("T")
Meaning = Callable[[str], T | None]
"""What a line means; None for one that makes no sense."""


@dataclass
class Dropped:
    """Lines of a file that were left out.

    Attributes:
        path: the file.
        lines: how many.
        size: their bytes.
        first: number of the first, from 1.
        reason: what is wrong with it.
        tail_only: whether it is half a line at the end alone, which is no damage: a process may be writing it.
    """

    path: Path
    lines: int = 0
    size: int = 0
    first: int = 0
    reason: str = ""
    tail_only: bool = field(default=True)

    def add(self, number: int, line: bytes, reason: str) -> None:
        """Count a line."""
        if not self.lines:
            self.first, self.reason = number, reason
        self.lines += 1
        self.size += len(line)
        self.tail_only = self.tail_only and not line.endswith(b"\n")

    def __bool__(self) -> bool:
        return self.lines > 0

    def __str__(self) -> str:
        what = f"line {self.first}" if self.lines == 1 else f"{counted(self.lines, 'line')} from line {self.first}"
        return f"{self.path}: {what} left out ({counted(self.size, 'byte')}): {self.reason}"


def kept_lines(path: Path, meaning: Meaning[T], dropped: Dropped) -> Iterator[tuple[bytes, T]]:
    """Yield the lines of a file that make sense, with their ends, and what they mean; nothing if there is no file.

    Args:
        path: the file.
        meaning: of a line without its end.
        dropped: counts the others; empty lines do not count.

    Raises:
        OutputError: the system refuses to read it, or it is a folder.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        found, reason = None, "makes no sense"
        if not line.endswith(b"\n"):
            reason = "cut off"
        if b"\0" in line:
            reason = "holds zeros, as after a power failure"
        elif line.endswith(b"\n"):
            try:
                found = meaning(line.decode().rstrip("\r\n"))
            except UnicodeDecodeError:
                reason = "not UTF-8"
        if found is None:
            dropped.add(number, line, reason)
        else:
            yield line, found


def json_object(text: str) -> dict[str, Any] | None:
    """Return the object that a text is."""
    try:
        content = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def object_with_step(text: str) -> dict[str, Any] | None:
    """Return the object that a text is if its ``step`` is a whole number."""
    found = json_object(text)
    return found if found is not None and type(found.get("step")) is int else None


class Rows:
    """What the lines of a CSV file mean: the header nothing, and each row its values by name, all of them numbers."""

    def __init__(self) -> None:
        self.header: list[str] | None = None

    def __call__(self, text: str) -> dict[str, float] | None:
        """Return the values of a row; an empty mapping for the header."""
        try:
            (cells,) = csv.reader([text])
            if self.header is None:
                self.header = cells if "step" in cells else None
                return None if self.header is None else {}
            values = [float(cell or "nan") for cell in cells]
            row = dict(zip(self.header, values, strict=True))
            return row if row["step"].is_integer() else None
        except (csv.Error, ValueError):
            return None


def first_object(path: Path) -> tuple[dict[str, Any], str]:
    """Return the object that a JSON file begins with, and in one line what is wrong with the file, if anything.

    The object is empty if there is no file, or none in it.

    Raises:
        OutputError: the system refuses to read it, or it is a folder.
    """
    data = b"".join(_lines(path))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode()
    start = len(text) - len(text.lstrip())
    try:
        found, end = json.JSONDecoder().raw_decode(text, start)
    except (RecursionError, ValueError) as error:
        return {}, f"{path}: damaged, nothing is read from it: {error}" if data else ""
    if not isinstance(found, dict):
        return {}, f"{path}: damaged: expected an object, found {type(found).__name__}"
    rest = data[len(text[:end].encode()) :].strip()
    line = text.count("\n", 0, end) + 1
    return found, f"{path}: {counted(len(rest), 'byte')} behind the object left out (line {line})" if rest else ""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from error
