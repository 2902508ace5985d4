"""A data set of any layout, written as a COCO folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_detr.atomic_files import reporting
from lora_detr.data.coco.audit import Policy, examine
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.images import difference_hash
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.progress import following
from lora_detr.data.quality.finding import warnings_of
from lora_detr.data.repair import refuse_existing
from lora_detr.data.twins import chosen_groups, groups_of
from lora_detr.errors import ConfigError, DataError, counted


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        counts: images and objects of each split, crowd regions among the objects.
        linked: image files that are hard links.
        copied: image files that were copied.
        remarks: what was dropped or repaired, a line each.
        missing: what was looked for and not found of a validation split; empty if one was written.
    """

    counts: dict[str, tuple[int, int]]
    linked: int
    copied: int
    remarks: tuple[str, ...]
    missing: str


def convert(
    data: Path,
    output: Path,
    *,
    how: ReadAs,
    policy: Policy,
    share: float | None = None,
    seed: int = 0,
    copy: bool = False,
) -> Converted:
    """Write a COCO folder, which appears at once and complete.

    Boxes and sizes are those that training would use; categories keep their ids. An image file is a hard link to the
    original, which takes no space, or a copy where the file system has no links.

    Args:
        data: the data set.
        output: folder to make.
        how: its layout.
        policy: how strictly it is read.
        share: of the training images that make up a validation split, where there is none. Images that show almost the
            same stay together.
        seed: of the choice.
        copy: copy all images.

    Raises:
        ConfigError: ``output`` holds something, or a share was given although there is a validation split.
        DataError: the data cannot be used, or cannot be divided.
        OutputError: the folder cannot be written.
    """
    refuse_existing(output)
    paths = find_splits(data, how)
    if share is not None and paths.val is not None:
        raise ConfigError(f"--split: {data} has a validation split already, {paths.val.name}", "leave --split out")
    found = examine(paths, policy)
    found.raise_faults()
    assert found.train is not None
    splits = {"train": found.train}
    remarks = [f"{split.report.file}: {remark}" for split in found.splits for remark in split.report.remarks()]
    if found.val is not None:
        splits["val"] = found.val.with_categories(found.train.categories)
    elif share is not None:
        splits = _divided(found.train, share, seed, policy)
    files = [0, 0]
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        reporting(output),
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch,
    ):
        made = Path(scratch) / output.name
        (made / "annotations").mkdir(parents=True)
        for name, split in splits.items():
            names = _place_images(split, made / name, copy, files)
            content = json.dumps(_content(split, names))
            (made / "annotations" / f"instances_{name}.json").write_text(content, encoding="utf-8")
        made.rename(output)
    counts = {name: (len(split), len(split.ground_truth.image_ids)) for name, split in splits.items()}
    missing = "" if len(splits) > 1 else paths.missing
    return Converted(counts, files[0], files[1], (*remarks, *warnings_of(found.findings)), missing)


def _divided(train: CocoSplit, share: float, seed: int, policy: Policy) -> dict[str, CocoSplit]:
    hashes = []
    for record in following(train.records, len(train), f"{train.report.file}: compare"):
        try:
            hashes.append(difference_hash(record.path, policy.max_pixels))
        except DataError:
            if policy.on_bad_data == "error":
                raise
            hashes.append(record.id % 2**64)  # in neither split is it read
    groups = groups_of(hashes)
    if groups.max() == 0:
        raise DataError(
            f"{train.report.file}: {counted(len(train), 'image')} cannot be divided: all show almost the same",
            "give more images, or make a validation split by hand",
        )
    is_val = chosen_groups(groups, share, seed)
    ids = train.records.ids
    return {"train": train.subset(ids[~is_val].tolist()), "val": train.subset(ids[is_val].tolist())}


def _place_images(split: CocoSplit, folder: Path, copy: bool, files: list[int]) -> list[str]:
    """Link or copy all images into a folder, and return their names there, by image; count both in ``files``."""
    folder.mkdir()
    names = []
    taken: dict[str, str] = {}  # name -> original
    for record in following(split.records, len(split), f"{folder.name}: write"):
        source = os.path.realpath(record.path)
        name = _free_name(record.file_name, source, record.id, taken)
        names.append(name)
        if name in taken:
            continue
        taken[name] = source
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = not copy and _link(source, target)
        if not linked:
            shutil.copyfile(source, target)
        files[0 if linked else 1] += 1
    return names


def _free_name(name: str, source: str, image_id: int, taken: dict[str, str]) -> str:
    """Return where in its folder an image goes: by its own name, unless that leads out of it or is another's."""
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.startswith(".."):
        inside = os.path.basename(inside)
    return inside if taken.get(inside, source) == source else f"{image_id}-{os.path.basename(inside)}"


def _link(source: str, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        return False
    return True


def _content(split: CocoSplit, names: list[str]) -> dict[str, Any]:
    return {
        "images": [
            {"id": record.id, "file_name": name, "width": record.width, "height": record.height}
            for record, name in zip(split.records, names, strict=True)
        ],
        "annotations": list(_annotations(split)),
        "categories": [{"id": i, "name": name} for i, name in split.categories.names_by_id.items()],
    }


def _annotations(split: CocoSplit) -> Iterator[dict[str, Any]]:
    truth = split.ground_truth
    columns = (truth.image_ids, truth.category_ids, truth.boxes_xywh_pixels, truth.areas, truth.crowd.astype(np.int64))
    for number, (image_id, category_id, box, area, crowd) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True), start=1
    ):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
