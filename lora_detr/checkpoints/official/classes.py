"""What the classes of an official file are: the file may name them, else COCO or a data set does, else nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_detr.checkpoints.official.file import CLASSES, OfficialFile
from lora_detr.data.coco.categories import COCO_NAMES, COCO_SLOTS, UNUSED, CategoryMap
from lora_detr.data.coco.split import load_split
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import CheckpointError

# In the Relation family's list of names, what stands for no category, and what ends a name.
NO_CATEGORY, END_OF_NAME = "none", -1

COCO_MAP = CategoryMap.coco91(COCO_NAMES)


@dataclass(frozen=True)
class OfficialClasses:
    """Labels of an official file.

    Attributes:
        categories: in official files labels are the data set's own ids, gaps included.
        known: whether anything said their names; else they are called ``class 0``, ``class 1`` and so on.
        described: where they come from, for people.
    """

    categories: CategoryMap
    known: bool
    described: str


def classes_of(file: OfficialFile, data: Path | None = None) -> OfficialClasses:
    """Return the labels 0..K-1 of a file.

    What the file says itself comes first; 91 classes without a word are COCO's; then ``data`` is asked.

    Args:
        file: official checkpoint with class heads.
        data: COCO folder or YAML whose categories a file without names was trained on.

    Raises:
        CheckpointError: the file's list, or the data, has ids that K classes cannot have.
        LoraDetrError: the data cannot be read.
    """
    num_classes = file.num_classes
    if file.categories is not None and file.categories.num_classes == num_classes:
        return OfficialClasses(file.categories, True, f"{num_classes}, listed in the file")
    stored = file.tensors.get(CLASSES)
    if stored is not None:
        names = decode_names(stored, file.path)
        if len(names) > num_classes:
            raise CheckpointError(f"{file.path}: lists {len(names)} classes, but its heads have {num_classes}")
        listed = [UNUSED if name == NO_CATEGORY else name for name in names]
        listed += [UNUSED] * (num_classes - len(names))
        return OfficialClasses(_map(listed), True, f"{num_classes}, listed in the file")
    if num_classes == COCO_SLOTS:
        return OfficialClasses(COCO_MAP, True, f"{num_classes}, taken for COCO's ids")
    if data is None:
        placeholders = [f"class {i}" for i in range(num_classes)]
        return OfficialClasses(_map(placeholders), False, f"{num_classes} without names")
    found = categories_in(data)
    beyond = [f"{i} '{name}'" for i, name in found.items() if not 0 <= i < num_classes]
    if beyond:
        raise CheckpointError(
            f"{file.path}: its {num_classes} classes have the ids 0 to {num_classes - 1}, but {data} has {beyond[0]} "
            f"({len(beyond)} of {len(found)} categories do not fit)",
            "give the data set that it was trained on",
            code="K08",
        )
    listed = [found.get(i, UNUSED) for i in range(num_classes)]
    return OfficialClasses(_map(listed), True, f"{num_classes}, taken from {data}")


def decode_names(stored: Tensor, path: Path) -> list[str]:
    """Return the names in a list of letters, in which -1 ends a name.

    Raises:
        CheckpointError: it is no such list.
    """
    names: list[str] = []
    letters: list[str] = []
    try:
        for number in stored.tolist():
            if number == END_OF_NAME:
                names.append("".join(letters))
                letters = []
            else:
                letters.append(chr(number))
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: '{CLASSES}' is no list of names: {error}", "use another copy") from error
    return names


def encode_names(categories: CategoryMap) -> Tensor | None:
    """Return what ``decode_names`` reads, int64; None where labels are not the ids, as official code has them."""
    if categories.ids != tuple(range(categories.num_classes)):
        return None
    numbers: list[int] = []
    for name in categories.names:
        numbers += [*map(ord, NO_CATEGORY if name == UNUSED else name), END_OF_NAME]
    return torch.tensor(numbers, dtype=torch.int64)


def _map(names: Sequence[str]) -> CategoryMap:
    return CategoryMap(tuple(range(len(names))), tuple(names))


def categories_in(data: Path) -> dict[int, str]:
    """Return name by id of a data set, from its smaller split; images and boxes are of no interest here."""
    paths = find_splits(data)
    split = load_split(paths.val or paths.train, on_bad_data="skip", check_files=False)
    return dict(split.categories.names_by_id)
