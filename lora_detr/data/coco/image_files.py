"""The image files of a split: whether they are there, what their names are on disk, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from lora_detr.data.coco.checks import Findings, OnBadData
from lora_detr.data.coco.files import ImageFolder
from lora_detr.data.images import image_size, many_files
from lora_detr.data.progress import following
from lora_detr.errors import DataError, counted


@dataclass(frozen=True)
class ImageFiles:
    """What was found of the files of all images.

    Attributes:
        names: of the files, as they are on disk.
        missing: places of images that are left out on request, since their files are missing.
        unreadable: places of images whose size cannot be read from their files.
        other_separators: how many names were changed.
    """

    names: list[str]
    missing: list[int]
    unreadable: list[int]
    other_separators: int


def check_files(found: Findings, folder: ImageFolder, on_bad_data: OnBadData) -> ImageFiles:
    """Look for all image files, and read sizes that rows lack; faults are added to what was found."""
    stored = [row["file_name"] for row in found.rows]
    names = [folder.name_on_disk(name) for name in stored]
    faults = folder.check(names)
    missing = [fault.index for fault in faults if fault.code == "D17"]
    # With more than half of them missing the folder is wrong, whatever was asked for, and that is one fault.
    most = 2 * len(missing) > len(names)
    left_out = missing if on_bad_data == "skip" and not most else []
    for fault in faults:
        if fault.code != "D17":
            found.add(fault.index, fault.code, fault.what)
        elif not left_out and (fault.index == missing[0] or not most):
            count = f" ({len(missing)} of {counted(len(names), 'image file')} are missing)"
            found.add(fault.index, "D17", fault.what + folder.hint(names[fault.index]) + count)
    unreadable = _read_sizes(found, folder, names, {fault.index for fault in faults}, on_bad_data)
    return ImageFiles(names, left_out, unreadable, sum(a != b for a, b in zip(stored, names, strict=True)))


def _read_sizes(
    found: Findings, folder: ImageFolder, names: list[str], faulty: set[int], on_bad_data: OnBadData
) -> list[int]:
    """Add width and height to rows that lack one; return places of images that are left out."""
    lacking = [i for i, row in enumerate(found.rows) if i not in faulty and not ("width" in row and "height" in row)]
    unreadable = []
    with many_files():
        for i in following(lacking, len(lacking), f"{found.file}: read sizes of"):
            try:
                size = image_size(folder.root / names[i]) if folder.must_exist else (1, 1)
            except DataError as error:
                size = (1, 1)
                unreadable.append(i)
                if on_bad_data == "error":
                    found.add(i, "D18", error.message)
            found.rows[i]["width"], found.rows[i]["height"] = size
    for i in faulty:
        found.rows[i].setdefault("width", 1)
        found.rows[i].setdefault("height", 1)
    if on_bad_data == "skip" and 2 * len(unreadable) > len(names):
        found.add(unreadable[0], "D18", f"{len(unreadable)} of {counted(len(names), 'image file')} cannot be read")
    return unreadable
