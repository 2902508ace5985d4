"""A picture that shows what a detector finds on a split, beside what is there."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from lora_detr.atomic_files import write_file
from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.images import read_image
from lora_detr.evaluation.drawing import LabelledBox, contact_sheet, side_by_side
from lora_detr.evaluation.predictor import Predictor

# Two pairs of panels a row fill a page without shrinking small images.
COLUMNS = 2


def write_comparison(path: Path, predictor: Predictor, split: CocoSplit, count: int) -> int:
    """Write ground truth and predictions of some images, side by side, into one PNG file.

    Args:
        path: file to write, replaced when it exists.
        predictor: finds the objects, at its operating point.
        split: labelled as the predictor; its first images with objects are shown.
        count: of images, at least 1.

    Returns:
        How many images are shown: fewer where fewer have objects; with none nothing is written.

    Raises:
        DataError: an image cannot be read.
        OutputError: the file cannot be written.
    """
    records = [record for record in split.records if len(record.category_ids)][:count]
    if not records:
        return 0
    pairs = [_pair(record, predictor, split) for record in records]
    content = io.BytesIO()
    contact_sheet(pairs, columns=COLUMNS).save(content, "PNG", optimize=True)
    write_file(path, content.getvalue())
    return len(records)


def _pair(record: ImageRecord, predictor: Predictor, split: CocoSplit) -> Image.Image:
    pixels = read_image(record, predictor.config.max_pixels).permute(1, 2, 0).contiguous().numpy()
    found = predictor.predict(pixels)
    return side_by_side(Image.fromarray(pixels), _truth(record, split), found.labelled_boxes())


def _truth(record: ImageRecord, split: CocoSplit) -> list[LabelledBox]:
    categories = split.categories
    labels = [categories.label_of(category_id) for category_id in record.category_ids.tolist()]
    boxes = record.boxes_xyxy_pixels.tolist()
    return [
        LabelledBox(x1, y1, x2, y2, label, categories.names[label])
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True)
    ]
