"""Read the logs of a run, which may be being written, cut off or damaged: what makes no sense is passed over."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_detr.errors import OutputError


def complete_lines(path: Path) -> Iterator[str]:
    """Yield the lines that have an end; nothing where there is no file.

    Raises:
        OutputError: the system refuses to read it.
    """
    try:
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if line.endswith("\n"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}", "nothing is drawn of this run") from error


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; errors as of ``complete_lines``."""
    for line in complete_lines(path):
        if record := json_object(line):
            yield record


def json_object(text: str) -> dict[str, Any]:
    """Return the object that a text is; an empty one where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(content := json.loads(text), dict):
            return content
    return {}


def number(value: Any) -> float:
    """Return a number, or one that a text holds; NaN for anything else, also if its sums and squares would overflow."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if abs(found) < 1e100 else math.nan
