"""How findings call an image or an object of a split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.quality.finding import PLACES


def image_place(split: CocoSplit, index: int) -> str:
    """Return file name and id of an image, counted from 0."""
    return f"{split.records.file_name(index)} (image id {split.records.ids[index]})"


def object_place(split: CocoSplit, index: int) -> str:
    """Return image, class and box of an object, counted from 0 over the whole split."""
    table = split.records
    image = int(np.searchsorted(table.object_ends, index, side="right")) - 1
    x1, y1, x2, y2 = table.boxes_xyxy_pixels[index].tolist()
    name = split.categories.names_by_id.get(int(table.category_ids[index]), "")
    return (
        f"{image_place(split, image)}: {name} at x, y, width, height {x1:.5g}, {y1:.5g}, {x2 - x1:.5g}, {y2 - y1:.5g}"
    )


def object_places(split: CocoSplit, indices: Iterable[int]) -> tuple[str, ...]:
    """Return the places of the first few objects."""
    return tuple(object_place(split, index) for index in [*indices][:PLACES])
