"""Access to a folder of reference values.

The environment variable ``LORADETR_GOLDEN`` names another folder of the same format; nothing here, and nothing in the
tests that use it, knows the name of a case.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor

VARIABLE = "LORADETR_GOLDEN"
DEFAULT = Path(__file__).parent / "data"

Items = TypeVar("Items", bound=Sized)


def folder() -> Path:
    """Return the folder in use."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def names(pattern: str) -> list[str]:
    """Return the sorted stems of the files that match ``pattern`` and exist both as .json and as .safetensors."""
    root = folder()
    return sorted(path.stem for path in root.glob(f"{pattern}.json") if path.with_suffix(".safetensors").is_file())


def load_json(name: str) -> Any:
    """Return what ``name``.json holds. Read again at each call, so that a test may edit it."""
    return json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))


def load_tensors(name: str) -> dict[str, Tensor]:
    """Return the tensors of ``name``.safetensors by key. The tensors are shared between calls: clone before editing."""
    return dict(_read(folder() / f"{name}.safetensors"))


def tensors_of(name: str, case: str) -> dict[str, Tensor]:
    """Return the tensors of one case, keyed without the ``case/`` prefix."""
    return under(load_tensors(name), f"{case}/")


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose key begins with ``prefix``, keyed without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def cases(name: str, group: str = "cases") -> list[str]:
    """Return the names of the cases in ``name``.json, in the order of the file.

    A file that is one case has no list of cases and gives its own name; a set that has tensors only gives the first
    parts of their keys. A missing file gives nothing, so that collecting tests never fails (see ``require``).
    """
    root = folder()
    if (root / f"{name}.json").is_file():
        content = load_json(name)
        if group in content:
            return [case["name"] for case in content[group]]
        return [content.get("name", name)] if group == "cases" else []
    if group == "cases" and (root / f"{name}.safetensors").is_file():
        return sorted({key.split("/", 1)[0] for key in load_tensors(name)})
    return []


def case(name: str, case_name: str, group: str = "cases") -> dict[str, Any]:
    """Return the entry of one case in ``name``.json.

    Raises:
        KeyError: there is no such case.
    """
    for entry in load_json(name)[group]:
        if entry["name"] == case_name:
            return dict(entry)
    raise KeyError(f"{name}.json has no case {case_name!r} in {group!r}")


def images_of(tensors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (labels [T], boxes [T, 4]) of each image, from the keys ``img<b>/gt_labels`` and ``img<b>/gt_boxes``."""
    images: list[tuple[Tensor, Tensor]] = []
    while f"img{len(images)}/gt_labels" in tensors:
        key = f"img{len(images)}"
        images.append((tensors[f"{key}/gt_labels"], tensors[f"{key}/gt_boxes"].reshape(-1, 4)))
    return images


def require(items: Items, what: str) -> Items:
    """Return ``items``, or fail when there are none.

    Parametrising over an empty list skips the test without a word; a golden set that lacks a whole subject, or a
    pattern that no longer matches, must not look like success.

    Raises:
        AssertionError: ``items`` is empty.
    """
    if not len(items):
        raise AssertionError(f"no reference values for {what} in {folder()}; set {VARIABLE} to a complete folder")
    return items


def pairs(listed: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return JSON pairs as sorted tuples (query, target)."""
    return sorted((int(query), int(target)) for query, target in listed)


@functools.cache
def _read(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path))
