"""The images of a split as flat arrays, and one of them as a record.

A process that reads images is a fork of the one that read the annotations and shares its memory until either writes.
Python writes into every object that it looks at, to count references; an object for each image or annotation would
therefore be copied into every such process, page by page, epoch by epoch. Arrays stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

# Names are stored as they stand in JSON, where half of a character pair may stand alone.
_ENCODING, _ERRORS = "utf-8", "surrogatepass"


@dataclass(frozen=True)
class ImageRecord:
    """One image and the objects that are trained on.

    Attributes:
        id: id in the annotation file.
        file_name: as in the annotation file.
        path: where the file is.
        width: pixels, as in the annotation file.
        height: pixels, as in the annotation file.
        boxes_xyxy_pixels: float32 [T, 4], clipped to the image; width and height > 0; by rising annotation id.
        category_ids: int64 [T], original ids.
    """

    id: int
    file_name: str
    path: Path
    width: int
    height: int
    boxes_xyxy_pixels: NDArray[np.float32]
    category_ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageTable(Sequence[ImageRecord]):
    """n images with m objects together; a read-only sequence that makes a record when it is asked for one.

    Attributes:
        folder: that file names are relative to.
        ids: int64 [n].
        widths: int64 [n], pixels.
        heights: int64 [n], pixels.
        name_bytes: uint8, all file names one behind the other.
        name_ends: int64 [n + 1], 0 and where each name ends.
        boxes_xyxy_pixels: float32 [m, 4], image by image.
        category_ids: int64 [m], original ids.
        object_ends: int64 [n + 1], 0 and where the objects of each image end.
    """

    folder: Path
    ids: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    name_bytes: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    boxes_xyxy_pixels: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    object_ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ImageRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        start, end = self.object_ends[index : index + 2].tolist()
        name = self.file_name(index)
        return ImageRecord(
            int(self.ids[index]),
            name,
            self.folder / name,
            int(self.widths[index]),
            int(self.heights[index]),
            self.boxes_xyxy_pixels[start:end],
            self.category_ids[start:end],
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[i] for i in range(len(self)))

    def file_name(self, index: int) -> str:
        """Return the file name of an image, counted from 0."""
        start, end = self.name_ends[index : index + 2].tolist()
        return self.name_bytes[start:end].tobytes().decode(_ENCODING, _ERRORS)

    def file_names(self) -> list[str]:
        """Return all file names, in order."""
        return [self.file_name(i) for i in range(len(self))]

    @property
    def object_counts(self) -> NDArray[np.int64]:
        """int64 [n], how many objects each image has."""
        return np.diff(self.object_ends)

    def take(self, indices: NDArray[np.int64]) -> ImageTable:
        """Return some of the images, in the order of their indices."""
        objects = _ranges(self.object_ends, indices)
        return ImageTable(
            self.folder,
            self.ids[indices],
            self.widths[indices],
            self.heights[indices],
            self.name_bytes[_ranges(self.name_ends, indices)],
            _ends(np.diff(self.name_ends)[indices]),
            self.boxes_xyxy_pixels[objects],
            self.category_ids[objects],
            _ends(self.object_counts[indices]),
        )


def make_table(
    folder: Path,
    rows: Sequence[tuple[int, str, int, int]],
    boxes_xyxy_pixels: NDArray[np.float32],
    category_ids: NDArray[np.int64],
    object_counts: NDArray[np.int64],
) -> ImageTable:
    """Return the table of some images.

    Args:
        folder: that file names are relative to.
        rows: id, file name, width and height of each of n images.
        boxes_xyxy_pixels: float32 [m, 4], image by image.
        category_ids: int64 [m], original ids.
        object_counts: int64 [n], how many of the m belong to each image.
    """
    numbers = np.array([(i, width, height) for i, _, width, height in rows], dtype=np.int64).reshape(-1, 3)
    names = [name.encode(_ENCODING, _ERRORS) for _, name, _, _ in rows]
    return ImageTable(
        folder,
        numbers[:, 0].copy(),
        numbers[:, 1].copy(),
        numbers[:, 2].copy(),
        np.frombuffer(b"".join(names), dtype=np.uint8),
        _ends(np.array([len(name) for name in names], dtype=np.int64)),
        boxes_xyxy_pixels,
        category_ids,
        _ends(object_counts),
    )


def _ends(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))


def _ranges(ends: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all places of the chosen ranges, range by range."""
    counts = np.diff(ends)[indices]
    shift = ends[indices] - _ends(counts)[:-1]  # from a place in the result to the place in the source
    return np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(shift, counts)
