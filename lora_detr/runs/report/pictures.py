"""The best and the worst images of a split, each as two pictures within the page: what there is, and what was found."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.images import read_image
from lora_detr.errors import counted, printable
from lora_detr.evaluation.drawing import LabelledBox, draw_boxes
from lora_detr.evaluation.error_kinds import ERRORS, MISSED, JudgedImage, Kind

EACH = 4
"""Images of either kind that are shown."""

MAX_SIDE = 640
MAX_BYTES = 140_000
"""Pixels of the longer side, and bytes, of a picture; a page has sixteen."""

_QUALITIES = (85, 75, 60, 45, 30)


@dataclass(frozen=True)
class Picture:
    """A picture within a page.

    Attributes:
        uri: its content, as JPEG.
        width: pixels.
        height: pixels.
        alt: what it shows, in words.
    """

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Example:
    """An image of the split.

    Attributes:
        name: of its file.
        verdict: what was found and what is wrong, in words.
        truth: the objects.
        found: the detections.
    """

    name: str
    verdict: str
    truth: Picture
    found: Picture


def extremes(images: Sequence[JudgedImage], each: int = EACH) -> tuple[list[int], list[int]]:
    """Return places of the best and of the worst images by F1, no image among both; ties go to more objects or errors.

    Images without an object and a detection are neither.
    """
    scores = {place: f1 for place, image in enumerate(images) if (f1 := image.f1) is not None}
    worst = sorted(scores, key=lambda place: (scores[place], -images[place].errors))[
        : min(each, (len(scores) + 1) // 2)
    ]
    rest = [place for place in scores if place not in worst]
    best = sorted(rest, key=lambda place: (-scores[place], -images[place].objects))[:each]
    return best, worst


def example(record: ImageRecord, judged: JudgedImage, split: CocoSplit, max_pixels: int) -> Example:
    """Draw an image twice.

    Args:
        record: of the image.
        judged: what was found there.
        split: with the labels of the model.
        max_pixels: a larger image is refused.

    Raises:
        DataError: the image cannot be read.
    """
    photo = Image.fromarray(read_image(record, max_pixels).permute(1, 2, 0).contiguous().numpy())
    scale = min(1.0, MAX_SIDE / max(photo.size))
    if scale < 1:
        photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    image, names, name = judged.image, split.categories.names, printable(record.file_name)
    objects = [
        _box(box, label, f"{names[label]} (crowd)" if crowd else names[label], None, scale)
        for box, label, crowd in zip(image.object_boxes, image.object_labels, image.crowd, strict=True)
    ]
    found = [
        _box(box, label, names[label], float(score), scale)
        for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True)
    ]
    return Example(
        name,
        _verdict(judged),
        _picture(photo, objects, f"Ground truth of {name}: {_listed(image.object_labels, split.categories)}"),
        _picture(photo, found, f"Detections on {name}: {_listed(image.labels, split.categories)}"),
    )


def _verdict(judged: JudgedImage) -> str:
    f1 = judged.f1
    assert f1 is not None
    wrong = Counter(Kind(kind).words for kind in judged.kinds.tolist())
    wrong[MISSED] = int(judged.missed.sum())
    errors = [f"{wrong[kind]} {kind}" for kind in ERRORS if wrong[kind]]
    return (
        f"F1 {f1:.2f}: {judged.right} of {counted(judged.objects, 'object')} found; {', '.join(errors) or 'no error'}"
    )


def _listed(labels: Iterable[int], categories: CategoryMap) -> str:
    counts = Counter(int(label) for label in labels)
    texts = [f"{count} {printable(categories.names[label])}" for label, count in counts.most_common(10)]
    return (", ".join(texts) + (", ..." if len(counts) > 10 else "")) or "none"


def _box(corners: Iterable[float], label: int, name: str, score: float | None, scale: float) -> LabelledBox:
    x1, y1, x2, y2 = (float(value) * scale for value in corners)
    return LabelledBox(x1, y1, x2, y2, int(label), name, score)


def _picture(photo: Image.Image, boxes: Sequence[LabelledBox], alt: str) -> Picture:
    visible = (box for box in boxes if box.x2 > 0 and box.x1 < photo.width and box.y2 > 0 and box.y1 < photo.height)
    drawn = draw_boxes(photo, visible)
    data = _encoded(drawn)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(uri, drawn.width, drawn.height, alt)


def _encoded(picture: Image.Image) -> bytes:
    """Return a picture as JPEG of at most ``MAX_BYTES``, at the best quality that fits, smaller if none does."""
    while True:
        for quality in _QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
            if len(file.getvalue()) <= MAX_BYTES:
                return file.getvalue()
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
