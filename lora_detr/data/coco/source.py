"""Where the rows of a split come from: a COCO file, or files of another layout that are turned into the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_detr.data.coco.checks import Row, read_root
from lora_detr.data.coco.report import Problem

Take = Callable[[list[Any]], None]
Report = Callable[[Problem], None]

VocOffset = Literal["auto", 0, 1]
VocDifficult = Literal["ignore", "keep"]

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class ReadAs:
    """How the files of a data set are read.

    Attributes:
        format: name of a layout, or ``auto``.
        voc_offset: what the coordinates of the first pixel are in XML files; ``auto`` decides by the training split.
        voc_difficult: ``ignore`` makes objects marked as difficult crowd regions.
    """

    format: str = AUTO
    voc_offset: VocOffset = AUTO
    voc_difficult: VocDifficult = "ignore"


class Source:
    """A split before it is checked.

    Args:
        path: file or folder that stands for all annotations.
        images: folder that the file names of images are relative to.
        name: what messages call the split; by default the name of ``path``.

    Attributes:
        reads_sizes: whether images may lack width and height, which are then read from their files.
        relative: whether boxes and areas are shares of the image, and no pixels.
        notes: what a user should know of what was read, a line each.
    """

    reads_sizes = False
    relative = False

    def __init__(self, path: Path, images: Path, name: str = "") -> None:
        self.path, self.images, self.name = path, images, name or path.name
        self.notes: list[str] = []

    def read(self, take: Take, report: Report, *, allow_outside: bool) -> Row:
        """Read everything.

        Args:
            take: given the rows of ``annotations``, piece by piece. The ``bbox`` of one that cannot be read is a
                ``Fault``.
            report: given each problem that belongs to no row.
            allow_outside: files outside the folder may be opened.

        Returns:
            The rows of ``images`` and ``categories``.

        Raises:
            DataError: nothing can be read.
        """
        raise NotImplementedError

    def place(self, section: str, index: int) -> str:
        """Return file and line of a row, once it was read; empty where that is its place in the section."""
        return ""

    def files(self) -> Iterable[str] | None:
        """Return what is read depends on: files, and folders with all they hold; None where reading again is quick."""
        return None

    def settings(self) -> tuple[object, ...]:
        """Return what else it depends on."""
        return ()


class JsonSource(Source):
    """A COCO file with its images.

    Args:
        path: COCO JSON.
        images: folder of its images.
        name: see ``Source``.
        reads_sizes: see there.
    """

    def __init__(self, path: Path, images: Path, name: str = "", *, reads_sizes: bool = False) -> None:
        super().__init__(path, images, name)
        self.reads_sizes = reads_sizes

    def read(self, take: Take, report: Report, *, allow_outside: bool) -> Row:
        """Read the file; see ``read_root``."""
        return read_root(self.path, take)

    def files(self) -> Iterable[str] | None:
        """Return the file and its images where sizes may have to be read from these."""
        return [str(self.path), str(self.images)] if self.reads_sizes else None


@dataclass(frozen=True)
class DataPaths:
    """The splits of a data set.

    Attributes:
        train: training split.
        val: validation split, or None.
        missing: what was looked for and not found of the validation split; empty if it is there.
    """

    train: Source
    val: Source | None
    missing: str = ""
