"""Parts of large photos, in which small objects are large enough to be seen: for training and for prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

OVERLAP = 0.2
"""Share of a tile that the next one covers too at least: an object of that size is whole in one of both."""

TILED, AIMED = 0.5, 0.8
"""How often training is given a tile instead of the whole photo, and how often one that an object is in."""

# Objects of which less is in a tile are left out, as in SAHI.
LEAST_PART = 0.1

Window = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def windows(height: int, width: int, side: int, overlap: float = OVERLAP) -> list[Window]:
    """Return tiles that cover an image, row by row, evenly spaced, each inside it.

    Args:
        height: of the image in pixels, at least 1.
        width: of the image in pixels, at least 1.
        side: of a tile; a shorter side of the image limits it.
        overlap: of neighbours at least, as a share of ``side``, in [0, 1).
    """
    rows, columns = (_starts(length, side, overlap) for length in (height, width))
    return [(top, left, min(side, height), min(side, width)) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    gaps = math.ceil((length - side) / max(1.0, side * (1 - overlap)))
    return [round(i * (length - side) / gaps) for i in range(gaps + 1)]


def cut(
    image: Tensor, boxes: Tensor, labels: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random tile of an image, mostly one that contains an object.

    Args:
        image: [3, H, W].
        boxes: [T, 4], xyxy in pixels; T may be 0.
        labels: [T].
        side: of the tile in pixels; a shorter side of the image limits it.
        generator: source of every random draw.

    Returns:
        The tile, the boxes of which at least a tenth is in it, clipped to it, and their labels.
    """
    height, width = image.shape[-2:]
    lowest, highest = [0, 0], [max(0, height - side), max(0, width - side)]
    if len(boxes) and _uniform(generator) < AIMED:
        x1, y1, x2, y2 = boxes[int(torch.randint(len(boxes), (), generator=generator))].tolist()
        for axis, (start, end) in enumerate(((y1, y2), (x1, x2))):
            # So that it is whole in the tile, or the tile in it.
            near, far = sorted((math.ceil(end) - side, math.floor(start)))
            lowest[axis] = min(max(near, 0), highest[axis])
            highest[axis] = max(min(far, highest[axis]), lowest[axis])
    top, left = (
        int(torch.randint(low, high + 1, (), generator=generator)) for low, high in zip(lowest, highest, strict=True)
    )
    tall, wide = min(side, height), min(side, width)
    moved = boxes - boxes.new_tensor([left, top, left, top])
    return F.crop(image, top, left, tall, wide), *visible(moved, labels, (0, 0, wide, tall))


def visible(
    boxes: Tensor, labels: Tensor, limits: tuple[int, int, int, int], shortest: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the boxes of which at least a tenth is visible, clipped to what is, and their labels.

    Args:
        boxes: [T, 4], xyxy in pixels; T may be 0.
        labels: [T].
        limits: x1, y1, x2, y2 of what is visible.
        shortest: pixels that both sides must have of a clipped box; 0 asks for more than 0.
    """
    low, high = boxes.new_tensor(limits[:2] * 2), boxes.new_tensor(limits[2:] * 2)
    clipped = boxes.maximum(low).minimum(high)
    sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    long_enough = ((sides > 0) & (sides >= shortest)).all(dim=1)
    kept = long_enough & (sides.prod(dim=1) >= LEAST_PART * before.prod(dim=1))
    return clipped[kept], labels[kept]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
