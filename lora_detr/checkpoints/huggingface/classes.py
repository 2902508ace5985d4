"""What the classes of a folder of ``transformers`` are: it has names by label, and ids only where ours wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_detr.checkpoints.official.classes import COCO_MAP, categories_in
from lora_detr.data.coco.categories import COCO_NAMES, CategoryMap
from lora_detr.errors import CheckpointError, listed
from lora_detr.models.huggingface.config import CATEGORY_IDS
from lora_detr.models.huggingface.pretrained import Pretrained
from lora_detr.models.huggingface.versions import PREFIX


def categories_of(pretrained: Pretrained, data: Path | None = None) -> tuple[CategoryMap, str]:
    """Return the labels of a folder, and in words where their ids come from.

    Ids are those that were written into the config here, else COCO's where the names are those of COCO (the 91 of its
    ids, or its 80), else those of the data set's categories of the same names, else COCO's where all names are among
    its 80, else the labels themselves.

    Args:
        pretrained: the folder.
        data: data set that it was trained on.

    Raises:
        CheckpointError: the ids in the config cannot be used; K08, the data set has not all of the names.
        LoraDetrError: the data cannot be read.
    """
    names, source = pretrained.names, f"{PREFIX}{pretrained.source}"
    stored = getattr(pretrained.config, CATEGORY_IDS, None)
    if stored is not None:
        try:
            return CategoryMap.from_json({"ids": stored, "names": names}), f"ids from {CATEGORY_IDS} of the config"
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {CATEGORY_IDS}: {error.message}", "correct or remove the key") from error
    if names == COCO_MAP.names:
        return COCO_MAP, "labels are COCO's ids"
    ids, origin = {name: i for i, name in COCO_NAMES.items()}, "ids are COCO's"
    are_different = len(set(names)) == len(names)
    if data is not None and set(names) != ids.keys():
        ids, origin = {name: i for i, name in categories_in(data).items()}, f"ids from {data}"
        unknown = [name for name in names if name not in ids]
        if unknown or not are_different:
            fault = f"{data} has no category {listed(unknown)}" if unknown else "some classes share a name"
            remedy = f'give the data set that it was trained on, or add its ids to config.json: "{CATEGORY_IDS}": [...]'
            raise CheckpointError(f"{source}: {fault}", remedy, code="K08")
    elif not are_different or not set(names) <= ids.keys():
        return CategoryMap(tuple(range(len(names))), names), "labels serve as ids; --data gives a data set's own"
    return CategoryMap(tuple(ids[name] for name in names), names), origin


def write_classes(config: Any, categories: CategoryMap) -> None:
    """Set the classes of a config of ``transformers``."""
    config.id2label = dict(enumerate(categories.names))
    config.label2id = {name: label for label, name in enumerate(categories.names)}
    setattr(config, CATEGORY_IDS, list(categories.ids))
