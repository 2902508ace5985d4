"""How many objects of each class a data set has."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_detr.data.checks import OnBadData
from lora_detr.data.coco import load_coco
from lora_detr.data.layout import find_splits
from lora_detr.json_value import JSON


@dataclass(frozen=True)
class ClassCount:
    """Objects of one class that would be trained on.

    Attributes:
        id: category id of the annotation files.
        name: as the training split has it.
        train: objects of the training split.
        val: objects of the validation split; 0 where there is none.
    """

    id: int
    name: str
    train: int
    val: int

    def to_json(self) -> dict[str, JSON]:
        """Return all fields."""
        return asdict(self)


def count_objects(data: Path, *, on_bad_data: OnBadData = "error", allow_outside: bool = False) -> list[ClassCount]:
    """Count the objects of each class, in the order of the ids; a class that only one split has is counted too.

    Args:
        data: COCO folder or YAML.
        on_bad_data: whether malformed boxes are left out or are an error.
        allow_outside: file names may lead out of their folder.

    Raises:
        LoraDetrError: the data cannot be read.
    """
    paths = find_splits(data)
    folders = [(paths.train_annotations, paths.train_images)]
    if paths.val_annotations is not None and paths.val_images is not None:
        folders.append((paths.val_annotations, paths.val_images))
    names: dict[int, str] = {}
    counts: list[Counter[int]] = []
    for file, images in folders:
        split = load_coco(file, images, on_bad_data=on_bad_data, check_files=False, allow_outside=allow_outside)
        names = {**split.categories.names_by_id, **names}
        counts.append(Counter(int(each) for record in split.records for each in record.category_ids))
    train, val = (*counts, Counter[int]())[:2]
    return [ClassCount(each, names[each], train[each], val[each]) for each in sorted(names)]
