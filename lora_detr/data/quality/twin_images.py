"""Images that are the same or almost the same, in one split or, which makes measurements too good, in both."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.coco.verification import Verified
from lora_detr.data.images import Look
from lora_detr.data.quality.finding import PLACES, Finding
from lora_detr.data.quality.places import image_place
from lora_detr.data.twins import earlier_twins
from lora_detr.errors import counted


def twins_within(split: CocoSplit, files: Verified) -> list[Finding]:
    """Return images that repeat others of their split (same bytes), and those that show almost the same.

    Args:
        split: any.
        files: what reading its images has shown; images that were not decoded are compared by their bytes alone.
    """
    first: dict[bytes, int] = {}
    copies = {image_id: first.setdefault(digest, image_id) for image_id, digest in files.digests.items()}
    same = [(image_id, other) for image_id, other in copies.items() if image_id != other]
    ids = [image_id for image_id in files.looks if copies.get(image_id) == image_id]
    almost = _twins(ids, [files.looks[image_id] for image_id in ids])
    found = []
    if same:
        text = f"{split.report.file}: {counted(len(same), 'image is', 'images are')} the same file as another"
        found.append(Finding("Q01", "warning", len(same), text, _places(same, split, split), "keep one of each"))
    if almost:
        text = (
            f"{split.report.file}: {counted(len(almost), 'image shows', 'images show')} almost the same as another, "
            "such as frames of a video: they teach little more than one of them"
        )
        found.append(Finding("Q02", "info", len(almost), text, _places(almost, split, split)))
    return found


def twins_between(
    train: CocoSplit, val: CocoSplit, train_files: Verified, val_files: Verified, known: Collection[int]
) -> list[Finding]:
    """Return validation images that show almost the same as a training image.

    Args:
        train: training split.
        val: validation split.
        train_files: what reading its images has shown.
        val_files: of the validation split.
        known: ids of validation images that are training images, and are no news.
    """
    train_ids = list(train_files.looks)
    val_ids = [image_id for image_id in val_files.looks if image_id not in known]
    if not train_ids or not val_ids:
        return []
    looks = [*train_files.looks.values(), *(val_files.looks[image_id] for image_id in val_ids)]
    near = earlier_twins(looks)[len(train_ids) :].tolist()
    pairs = [(own, train_ids[place]) for own, place in zip(val_ids, near, strict=True) if 0 <= place < len(train_ids)]
    if not pairs:
        return []
    text = (
        f"{val.report.file}: {len(pairs):,} of {counted(len(val), 'image')} almost the same as one of "
        f"{train.report.file}: what is measured on them is too good"
    )
    remedy = "move them to one split; loradetr data convert --split val=0.2 divides training images so"
    return [Finding("Q03", "warning", len(pairs), text, _places(pairs, val, train), remedy)]


def _twins(ids: Sequence[int], looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Return the id of each image that shows almost the same as an earlier one, and that of the earlier one."""
    return [(own, ids[place]) for own, place in zip(ids, earlier_twins(looks).tolist(), strict=True) if place >= 0]


def _places(pairs: Sequence[tuple[int, int]], first: CocoSplit, second: CocoSplit) -> tuple[str, ...]:
    return tuple(f"{_place(first, one)} and {_place(second, other)}" for one, other in pairs[:PLACES])


def _place(split: CocoSplit, image_id: int) -> str:
    return image_place(split, int(np.searchsorted(split.records.ids, image_id)))
