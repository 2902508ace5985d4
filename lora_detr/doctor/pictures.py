"""Pictures of a data set: annotated samples of every class, and what its objects and images are like in numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lora_detr.atomic_files import write_file
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.images import decode_file
from lora_detr.data.progress import following
from lora_detr.data.quality.detector_limits import DetectorLimits
from lora_detr.doctor.histograms import class_counts, object_counts, object_sizes
from lora_detr.errors import DataError, counted, printable
from lora_detr.evaluation.drawing import LabelledBox, contact_sheet, draw_boxes, fitted_text

SAMPLES, ROWS = 4, 6
"""Photos of a class, and classes of a sheet."""

CELL = 540, 405
"""Room for a photo in a sheet, width and height: large enough that drawing enlarges none (``READABLE_SIDE``)."""

TITLE = 36
"""Height of a title in pixels."""


@dataclass(frozen=True)
class _Class:
    """A class and images that show it."""

    id: int
    name: str
    label: int
    objects: int
    images: tuple[int, ...]


def draw_data(splits: Sequence[CocoSplit], limits: DetectorLimits, folder: Path) -> list[Path]:
    """Write all pictures and return their paths: ``samples-1.png`` and so on, and three histograms.

    Samples are of the first split. What cannot be read is left out: other checks report it.

    Args:
        splits: training first; without any, nothing is drawn.
        limits: of the detector, whose input size decides how large objects are.
        folder: exists.

    Raises:
        OutputError: a picture cannot be written.
    """
    if not splits:
        return []
    pictures = {
        "object_sizes.png": object_sizes(splits, limits),
        "classes.png": class_counts(splits),
        "objects_per_image.png": object_counts(splits, limits),
    }
    for number, sheet in enumerate(_sheets(splits[0]), start=1):
        pictures[f"samples-{number}.png"] = _png(sheet)
    for name, content in pictures.items():
        write_file(folder / name, content)
    return [folder / name for name in pictures]


def _sheets(split: CocoSplit) -> Iterator[Image.Image]:
    """Give sheets of samples, a class in each row, by rising id."""
    classes = [each for each in _classes(split) if each.images]
    cells: list[Image.Image] = []
    for each in following(classes, len(classes), "draw samples of"):
        cells += [_cell(each, column, split) for column in range(SAMPLES)]
        if len(cells) == SAMPLES * ROWS:
            yield contact_sheet(cells, columns=SAMPLES)
            cells = []
    if cells:
        yield contact_sheet(cells, columns=SAMPLES)


def _classes(split: CocoSplit) -> Iterator[_Class]:
    table = split.records
    images = np.repeat(np.arange(len(table)), table.object_counts)
    for label, each in enumerate(split.report.per_category):
        own = np.unique(images[table.category_ids == each.id])
        chosen = own[np.linspace(0, len(own) - 1, min(SAMPLES, len(own))).round().astype(int)] if len(own) else own
        yield _Class(each.id, each.name, label, each.objects, tuple(chosen.tolist()))


def _cell(shown: _Class, column: int, split: CocoSplit) -> Image.Image:
    """Return a photo with its objects below the head of a row, or an empty cell."""
    width, height = CELL
    cell = Image.new("RGB", (width, height + TITLE), (255, 255, 255))
    draw = ImageDraw.Draw(cell)
    if column == 0:
        title = f"{printable(shown.name)}: {counted(shown.objects, 'object')}"
        font, text = fitted_text(title, TITLE - 12, width)
        draw.text((0, TITLE / 2), text, fill=(16, 16, 16), font=font, anchor="lm")
    if column < len(shown.images):
        photo = _photo(shown, split, shown.images[column])
        if photo is not None:
            cell.paste(photo, ((width - photo.width) // 2, TITLE + (height - photo.height) // 2))
    return cell


def _photo(shown: _Class, split: CocoSplit, index: int) -> Image.Image | None:
    """Return a photo, as large as a cell has room for, with the objects of one class; None if it cannot be read."""
    record = split.records[index]
    try:
        pixels = decode_file(record.path).permute(1, 2, 0).numpy()
    except DataError:
        return None
    height, width = pixels.shape[:2]
    scale = min(CELL[0] / width, CELL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    boxes = record.boxes_xyxy_pixels[record.category_ids == shown.id] * scale
    return draw_boxes(photo, [LabelledBox(x1, y1, x2, y2, shown.label, "") for x1, y1, x2, y2 in boxes.tolist()])


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
