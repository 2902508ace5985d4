"""Strong augmentation as DEIM trains with: several images in one, other colours, zooming out, and crops by IoU.

Huang et al. (2025), "DEIM: DETR with Improved Matching", section 3.2 and its settings: four images in one, and two
blended into one, each with probability 0.5 from 4 % to half of the run; colours, zooming out, crops from 4 % to 90 %.
An image of four is neither zoomed nor cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lora_detr.data.tiles import visible

Decoded = tuple[Tensor, Tensor, Tensor]
"""Image uint8 [3, H, W]; boxes float32 [T, 4], xyxy in pixels; labels int64 [T]."""

FROM, SEVERAL_UNTIL, UNTIL = 0.04, 0.5, 0.9
"""Shares of the run between which augmentation is strong, and until which images are made of several."""

PROBABILITY, CROP_PROBABILITY = 0.5, 0.8

# Grey, as it is usual around images of a mosaic.
FILL = 114
_CENTRE, _SCALE, _WEIGHT = (0.35, 0.65), (0.75, 1.5), (0.45, 0.55)


class Dense:
    """Augments one image, for which it may read others.

    Args:
        side: longest side in pixels of what is trained on; larger images are shrunk to it first.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        label_of: Callable[[dict[str, Tensor]], Tensor] = lambda parts: parts["labels"]  # noqa: E731
        tidy = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=label_of)
        self.colours = v2.RandomPhotometricDistort(p=PROBABILITY)
        self.zoom = v2.Compose([v2.RandomZoomOut(fill=FILL, p=PROBABILITY), tidy])
        self.crop = v2.Compose([v2.RandomApply([v2.RandomIoUCrop()], p=CROP_PROBABILITY), tidy])

    def __call__(
        self, sample: Decoded, others: Callable[[int], Decoded | None], count: int, progress: float, seed: int
    ) -> Decoded:
        """Augment an image as the run has it at ``progress``.

        Args:
            sample: the image.
            others: reads an image of the split by its index; None if it cannot be read.
            count: images of the split.
            progress: share of the run that is behind, in [0, 1].
            seed: of every random draw; the global generator stays as it is.
        """
        if not FROM <= progress < UNTIL:
            return sample
        # The operations of torchvision draw from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            several = progress < SEVERAL_UNTIL
            sample = self._shrunk(sample)
            if several and _chance():
                drawn = [others(int(torch.randint(count, ()))) for _ in range(3)]
                sample = self._mosaic([sample, *(self._shrunk(one) for one in drawn if one is not None)])
            elif len(sample[1]):
                sample = _apply(self.crop, _apply(self.zoom, sample))
            sample = _apply(self.colours, sample)
            if several and _chance():
                other = others(int(torch.randint(count, ())))
                sample = sample if other is None else self._blended(sample, self._shrunk(other))
        return sample

    def _shrunk(self, sample: Decoded) -> Decoded:
        """Return the image with no side longer than ``side``."""
        longest = max(sample[0].shape[-2:])
        return sample if longest <= self.side else _scaled(sample, self.side / longest)

    def _mosaic(self, samples: Sequence[Decoded]) -> Decoded:
        """Return up to four images around a point near the middle of a square."""
        side = self.side
        centre = [round(_between(_CENTRE) * side) for _ in range(2)]
        canvas = torch.full((3, side, side), FILL, dtype=torch.uint8)
        found = []
        for place, sample in enumerate(samples):
            image, boxes, labels = _scaled(sample, side / 2 / max(sample[0].shape[-2:]) * _between(_SCALE))
            height, width = image.shape[-2:]
            left = centre[0] - width * (place % 2 == 0)
            top = centre[1] - height * (place < 2)
            found.append(_pasted(canvas, image, boxes, labels, left, top))
        return canvas, torch.cat([boxes for boxes, _ in found]), torch.cat([labels for _, labels in found])

    def _blended(self, sample: Decoded, other: Decoded) -> Decoded:
        """Return an image that another one, made to fit into it, shines through; all objects of both count."""
        image, boxes, labels = sample
        height, width = image.shape[-2:]
        other = _scaled(other, min(height / other[0].shape[-2], width / other[0].shape[-1]))
        canvas = torch.full_like(image, FILL)
        more, more_labels = _pasted(canvas, *other, 0, 0)
        weight = _between(_WEIGHT)
        mixed = (image.float() * weight + canvas.float() * (1 - weight)).round().to(torch.uint8)
        return mixed, torch.cat((boxes, more)), torch.cat((labels, more_labels))


def _apply(operation: Callable[[dict[str, Tensor]], dict[str, Tensor]], sample: Decoded) -> Decoded:
    """Apply an operation of torchvision."""
    image, boxes, labels = sample
    height, width = image.shape[-2:]
    found = operation(
        {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload, unused-ignore]
            "labels": labels,
        }
    )
    return found["image"].as_subclass(Tensor), found["boxes"].as_subclass(Tensor), found["labels"]


def _scaled(sample: Decoded, factor: float) -> Decoded:
    """Return an image scaled by a factor; no side becomes shorter than a pixel."""
    image, boxes, labels = sample
    height, width = image.shape[-2:]
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    ratio = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return F.resize(image.as_subclass(Tensor), size, antialias=True), boxes * ratio, labels


def _pasted(canvas: Tensor, image: Tensor, boxes: Tensor, labels: Tensor, left: int, top: int) -> tuple[Tensor, Tensor]:
    """Put an image onto a canvas, which it may stick out of, and return the objects that are left of it."""
    height, width = canvas.shape[-2:]
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + image.shape[-1], width), min(top + image.shape[-2], height)
    canvas[:, y1:y2, x1:x2] = image[:, y1 - top : y2 - top, x1 - left : x2 - left]
    moved = boxes + boxes.new_tensor([left, top, left, top])
    return visible(moved, labels, (x1, y1, x2, y2), shortest=1)


def _chance() -> bool:
    return float(torch.rand(())) < PROBABILITY


def _between(limits: tuple[float, float]) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand(()))
