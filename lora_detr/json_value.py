"""What JSON can hold, of which settings, states and manifests are made, and how a file of it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, Union

JSON: TypeAlias = Union[dict[str, "JSON"], list["JSON"], str, int, float, bool, None]  # noqa: UP007 (a string in `|`)


def read_json(path: Path, error: Callable[[str], Exception]) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: of the file.
        error: makes the exception of a message, which names the file, and line and column of what is not JSON.

    Raises:
        Exception: what ``error`` made: the file cannot be read, is not JSON, or holds something else than a mapping.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}") from fault
    except (RecursionError, ValueError) as fault:
        raise error(f"{path}: damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise error(f"{path}: damaged: expected a mapping, found {type(content).__name__}")
    return content
