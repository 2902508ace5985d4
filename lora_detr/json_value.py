"""What JSON can hold, of which settings, states and manifests are made, and how a file of it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, Union

from lora_detr.regular_files import read_regular

JSON: TypeAlias = Union[dict[str, "JSON"], list["JSON"], str, int, float, bool, None]  # noqa: UP007 (a string in `|`)

_SURROGATE = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|(?:\\udc[89a-f].)+|\\ud[89a-f]..")
"""In a JSON text: an escaped backslash, a pair that is a character, bytes of a file name, half a pair."""

MAX_BYTES = 1_000_000_000
"""Of a file that is read as a whole; far more than any state, log or report needs."""


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON that every reader accepts.

    Text of Python may hold what is no character: bytes of a file name that are not UTF-8, or half of a pair. Many
    readers refuse it in JSON, so it is written as a backslash and its number, as in messages (``errors.printable``).
    """
    text = json.dumps(value, indent=indent)
    return _SURROGATE.sub(_escaped, text) if "\\ud" in text else text


def _escaped(found: re.Match[str]) -> str:
    text = found[0]
    if text == "\\\\" or (len(text) == 12 and text[3] in "89ab"):
        return text
    if text.startswith("\\udc") and text[4] in "89abcdef":
        data = bytes(int(text[at + 4 : at + 6], 16) for at in range(0, len(text), 6))
        return json.dumps(data.decode("utf-8", "backslashreplace"))[1:-1]
    return "\\" + text


def read_json(path: Path, error: Callable[[str], Exception]) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: of the file.
        error: makes the exception of a message, which names the file, and line and column of what is not JSON.

    Raises:
        Exception: what ``error`` made: the file cannot be read, is not JSON, or holds something else than a mapping.
    """
    try:
        content = json.loads(read_regular(path, MAX_BYTES))
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}") from fault
    except (RecursionError, ValueError) as fault:
        raise error(f"{path}: damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise error(f"{path}: damaged: expected a mapping, found {type(content).__name__}")
    return content


def is_number(text: str) -> bool:
    """Return whether a text is a number as Python reads it, not finite ones included."""
    try:
        float(text)
    except ValueError:
        return False
    return True
