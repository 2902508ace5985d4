"""What a layout of a data set is, and what several of them need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_detr.data.coco.source import DataPaths, ReadAs
from lora_detr.errors import DataError, printable

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2")
    + (".pfm", ".pgm", ".pbm", ".pnm", ".ppm", ".avif", ".dng", ".heic", ".heif")
)
"""Files that are taken for images, whether or not they can be decoded: one that cannot is an error, not left out."""

VALIDATION = ("val", "valid", "validation")
"""Names of a validation split."""


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: value of ``data.format``.
        expects: the files by which it is recognised.
        recognises: whether a folder or file is laid out so; quick, and never raises.
        splits: finds the splits.
    """

    name: str
    expects: str
    recognises: Callable[[Path], bool]
    splits: Callable[[Path, ReadAs], DataPaths]


def not_found(data: Path, expected: str) -> DataError:
    """Return the error of a folder that does not have what a layout expects."""
    found = "a file"
    if data.is_dir():
        found = ", ".join(printable(name) for name in sorted(os.listdir(data))[:10]) or "nothing"
    return DataError(f"{data}: expected {expected}, found {found}", "correct --data or --data-format")


def split_folder(data: Path, names: Sequence[str], file: str) -> Path | None:
    """Return the first folder of some names that has a file of that name."""
    return next((data / name for name in names if (data / name / file).is_file()), None)


def is_image(name: str) -> bool:
    """Return whether a file is taken for an image; hidden files are not, since some systems keep notes in them."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def walk_images(folder: Path) -> list[str]:
    """Return the images of a folder and of those below it, by name, relative to it.

    Links to folders are followed, each folder once.
    """
    seen: set[str] = set()

    def walk(inner: str) -> Iterator[str]:
        path = os.path.join(folder, inner)
        real = os.path.realpath(path)
        if real in seen:
            return
        seen.add(real)
        with os.scandir(path) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
        for name, is_folder in found:
            if is_folder:
                yield from walk(f"{inner}{name}/")
            elif is_image(name):
                yield inner + name

    try:
        return sorted(walk(""))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: the folder cannot be read: {error.strerror}", "check its permissions"
        ) from error
