"""COCO files in a folder that is laid out in another way, so that an error can print what to write for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lora_detr.regular_files import open_regular

NOT_FOUND = "..."

# Not for reading data, only for a message: what is deeper, further down or further into a file is not looked at.
_DEPTH, _ENTRIES, _BYTES = 3, 2000, 1 << 16

_SECTION = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*"((?:[^"\\]|\\\\)+)"')
# Split -> parts of paths by which it goes.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev", "test")}


def four_lines(folder: Path) -> list[str]:
    """Return the lines of a YAML file for the COCO files in a folder; empty if there are none.

    Args:
        folder: searched together with its sub-folders.

    Returns:
        The keys of ``layout.PATH_KEYS`` with paths relative to the folder, those of a validation split only if there
        is one; dots stand for images of that split that are not found.
    """
    files, folders = _searched(folder)
    found = {path: _head(path) for path in files}
    coco = {path: head for path, head in found.items() if head.lstrip()[:1] == b"{" and _SECTION.search(head)}
    if not coco:
        return []
    lines, taken = [], set[Path]()
    for split, marks in _SPLITS.items():
        path = next((path for path in coco if path not in taken and _is_of(path.relative_to(folder), marks)), None)
        if path is None and split == "train":
            path = next(iter(coco))
        images = None if path is None else first_image_folder(path, [path.parent, *folders])
        taken |= {path} if path is not None else set()
        lines += [f"{split}_annotations: {_shown(path, folder)}", f"{split}_images: {_shown(images, folder)}"]
    if NOT_FOUND in "".join(lines[:2]):
        return []
    return lines if len(taken) > 1 else lines[:2]


def first_image_folder(annotations: Path, folders: list[Path]) -> Path | None:
    """Return the first of some folders that holds the first image of an annotation file; None if none does."""
    name = _FILE_NAME.search(_head(annotations))
    file_name = name[1].decode(errors="replace").replace("\\\\", "/") if name else ""
    return next((folder for folder in folders if file_name and (folder / file_name).is_file()), None)


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_BYTES)
    except OSError:
        return b""


def _searched(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the JSON files and the folders below a folder, by name."""
    files, folders = [], []
    for seen, path in enumerate(_walk(folder, 0)):
        if seen >= _ENTRIES:
            break
        if path.is_dir():
            folders.append(path)
        elif path.suffix == ".json" and path.is_file():
            files.append(path)
    return files, folders


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink() and depth < _DEPTH:
            yield from _walk(path, depth + 1)
        elif name.endswith(".json"):
            yield path


def _is_of(path: Path, marks: tuple[str, ...]) -> bool:
    words = re.split(r"[^a-z]+", str(path).lower())
    return any(word in marks for word in words)


def _shown(path: Path | None, folder: Path) -> str:
    return NOT_FOUND if path is None else path.relative_to(folder).as_posix()
