"""Resize, crop and flip of an image with its boxes: the training recipe of the DETR family, and that of evaluation.

Boxes are (x1, y1, x2, y2) in pixels of the image they go with until ``finish``, which makes them relative. Pixels stay
bytes; the detector normalises them. Every random draw comes from the generator given, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lora_detr.config.base import Strict
from lora_detr.data.tiles import TILED, cut

ELONGATED = 16
"""Ratio of sides from which an image is not cropped: enlarged without a maximum first, it might not fit memory."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=1, le=100_000)]
Sides = Annotated[tuple[Side, ...], Field(min_length=1)]

SizeRule = Callable[[int, int, int, int | None], tuple[int, int]]
"""From height, width, the wanted shorter side, and the limit of the longer one (None for none) to (height, width)."""


class Transform(Protocol):
    """Maps an image and its boxes to what a detector takes.

    Args:
        image: uint8 [3, H, W].
        boxes: float32 [T, 4], xyxy in pixels; T may be 0.
        labels: int64 [T].
        generator: source of every random draw.

    Returns:
        Pixels uint8 [3, H', W'], contiguous; boxes float32 [T', 4], cxcywh relative to H' and W'; labels [T'].
    """

    @property
    def shorter(self) -> int | None:
        """Pixels that the shorter side of an image needs at most, so that it is never enlarged for want of them.

        None where all of them are needed.
        """

    def __call__(
        self, image: tv_tensors.Image, boxes: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def deformable_size(height: int, width: int, shorter: int, longest: int | None) -> tuple[int, int]:
    """Return (height, width) after the shorter side becomes ``shorter``, the longer one at most ``longest``.

    Rounds as the Deformable family does, in training and in evaluation: where ``longest`` decides, it is the shorter
    side that is computed and rounded half to even, and the longer one follows from it, rounded down. So the longer side
    misses ``longest`` by up to half the ratio of the sides, in either direction. Only where less than one pixel would
    be left of the shorter side, which that rule cannot do, the longer one becomes ``longest``. Both are at least 1.
    """
    small, large = min(height, width), max(height, width)
    if longest is not None and large / small * shorter > longest:
        if longest * small < large:
            return (longest, 1) if width < height else (1, longest)
        shorter = round(longest * small / large)
    if small == shorter:
        return height, width
    if width < height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def relation_size(height: int, width: int, shorter: int, longest: int | None) -> tuple[int, int]:
    """Return what ``deformable_size`` does, as the Relation family rounds in training.

    Both sides are multiplied by one ratio, in float64, and rounded down. So either may miss its goal by a pixel,
    never upwards. Both are at least 1.
    """
    ratio = shorter / min(height, width)
    if longest is not None:
        ratio = min(ratio, longest / max(height, width))
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def relation_eval_size(height: int, width: int, shorter: int, longest: int | None) -> tuple[int, int]:
    """Return what ``relation_size`` does but for the precision: as the Relation family rounds in evaluation.

    There it computes in float32, which makes sides of some images differ by a pixel.
    """
    sides = torch.tensor([height, width], dtype=torch.float32)
    # Products with reciprocals, since dividing a number by a tensor comes to that, and rounds twice.
    ratio = shorter * sides.min().reciprocal()
    if longest is not None:
        ratio = torch.minimum(ratio, longest * sides.max().reciprocal())
    new_height, new_width = (sides * ratio).int().clamp(min=1).tolist()
    return new_height, new_width


def flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror image and boxes left to right."""
    mirrored: Tensor = F.horizontal_flip(_with_canvas(boxes, image))
    return F.horizontal_flip(image), _plain(mirrored)


def resize(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale image and boxes to ``size`` (height, width); bilinear, with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image, boxes
    scaled: Tensor = F.resize(_with_canvas(boxes, image), list(size))
    return F.resize(image, list(size), antialias=True), _plain(scaled)


def crop(image: Tensor, boxes: Tensor, labels: Tensor, window: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Cut out a window; keep the boxes that have a width and a height in it, clipped to it.

    Args:
        image: [3, H, W].
        boxes: [T, 4], xyxy in pixels.
        labels: [T].
        window: top, left, height, width in pixels, inside the image.

    Returns:
        Image, boxes in the window's pixels, and labels; possibly no box.
    """
    top, left, height, width = window
    limit = boxes.new_tensor([width, height, width, height])
    boxes = (boxes - boxes.new_tensor([left, top, left, top])).clamp(min=0).minimum(limit)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return F.crop(image, top, left, height, width), boxes[kept], labels[kept]


def drop_small(boxes: Tensor, labels: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return the boxes [T, 4] (xyxy) of which both sides are at least ``least`` pixels long, and their labels [T]."""
    kept = (boxes[:, 2:] - boxes[:, :2] >= least).all(dim=1)
    return boxes[kept], labels[kept]


def finish(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels as contiguous planes, and boxes as cxcywh relative to the image, in [0, 1]."""
    height, width = image.shape[-2:]
    low, high = boxes[:, :2], boxes[:, 2:]
    boxes = torch.cat(((low + high) / 2, high - low), dim=1) / boxes.new_tensor([width, height, width, height])
    # Decoders lay out pixels channel by channel within each; batches are filled faster from planes.
    return image.contiguous().as_subclass(Tensor), boxes


class EvalTransform:
    """Resize by a fixed rule; draws nothing. It takes all pixels, so that a prediction depends on no decoder's haste.

    Args:
        size: shorter side in pixels, or both sides if ``square``.
        max_size: limit of the longer side; None for no limit; unused if ``square``.
        square: ignore the aspect ratio.
        size_rule: how the new size is computed; unused if ``square``.
    """

    shorter = None

    def __init__(self, *, size: int, max_size: int | None, square: bool, size_rule: SizeRule) -> None:
        self.size = size
        self.max_size = max_size
        self.square = square
        self.size_rule = size_rule

    def __call__(
        self, image: tv_tensors.Image, boxes: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = _target_size(image, self.size, self.max_size, self.square, self.size_rule)
        pixels, boxes = finish(*resize(image, boxes, size))
        return pixels, boxes, labels


class AsStored:
    """Leaves an image as it is, for graphs that resize by themselves; draws nothing."""

    shorter = None

    def __call__(
        self, image: tv_tensors.Image, boxes: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        pixels, boxes = finish(image, boxes)
        return pixels, boxes, labels


class TrainTransform:
    """Flip, then either resize, or enlarge, crop and resize.

    Args:
        scales: shorter sides (both sides if ``square``) to choose from, in pixels.
        max_size: limit of the longer side after the last resize; None for no limit; unused if ``square``.
        flip_probability: of mirroring.
        crop_probability: of the alternative with a crop.
        crop_scales: shorter sides before the crop, in pixels; no limit of the longer side.
        crop_range: smallest and largest side of the crop in pixels, both included; an image smaller than either
            limits it.
        square: ignore the aspect ratio in the last resize.
        size_rule: how new sizes are computed; not used for the last resize if ``square``.
        min_box: boxes with a shorter side than this many pixels after the last resize are dropped; 0 drops none.
        tiles: side in pixels of tiles, one of which often stands for an image that is larger; None for no tiles.
    """

    def __init__(
        self,
        *,
        scales: Sequence[int],
        max_size: int | None,
        flip_probability: float,
        crop_probability: float,
        crop_scales: Sequence[int],
        crop_range: tuple[int, int],
        square: bool,
        size_rule: SizeRule,
        min_box: float,
        tiles: int | None = None,
    ) -> None:
        self.scales = tuple(scales)
        self.max_size = max_size
        self.flip_probability = flip_probability
        self.crop_probability = crop_probability
        self.crop_scales = tuple(crop_scales)
        self.crop_range = crop_range
        self.square = square
        self.size_rule = size_rule
        self.min_box = min_box
        self.tiles = tiles

    def __call__(
        self, image: tv_tensors.Image, boxes: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        pixels: Tensor = image
        if self.tiles is not None and max(pixels.shape[-2:]) > self.tiles and _chance(TILED, generator):
            pixels, boxes, labels = cut(pixels, boxes, labels, self.tiles, generator)
        if _chance(self.flip_probability, generator):
            pixels, boxes = flip(pixels, boxes)
        small, large = sorted(pixels.shape[-2:])
        if _chance(self.crop_probability, generator) and large <= ELONGATED * small:
            height, width = pixels.shape[-2:]
            size = self.size_rule(height, width, _choice(self.crop_scales, generator), None)
            pixels, boxes = resize(pixels, boxes, size)
            pixels, boxes, labels = crop(pixels, boxes, labels, self._window(pixels, generator))
        size = _target_size(pixels, _choice(self.scales, generator), self.max_size, self.square, self.size_rule)
        pixels, boxes = resize(pixels, boxes, size)
        boxes, labels = drop_small(boxes, labels, self.min_box)
        pixels, boxes = finish(pixels, boxes)
        return pixels, boxes, labels

    @property
    def shorter(self) -> int | None:
        """Pixels that the shorter side needs: for the largest scale; all of them where tiles are cut out."""
        if self.tiles is not None:
            return None
        return max((*self.scales, *(self.crop_scales if self.crop_probability else ())))

    def _window(self, image: Tensor, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a crop."""
        full_height, full_width = image.shape[-2:]
        low, high = self.crop_range
        width = _integer(min(low, full_width), min(high, full_width), generator)
        height = _integer(min(low, full_height), min(high, full_height), generator)
        top = _integer(0, full_height - height, generator)
        left = _integer(0, full_width - width, generator)
        return top, left, height, width


class EvalTransformConfig(Strict):
    """How images are prepared for evaluation."""

    size: Side = 800
    """Shorter side in pixels; both sides if ``square``."""
    max_size: Side | None = 1333
    """Limit of the longer side in pixels; null for none. Not used if ``square``."""
    square: bool = False
    """Resize to size x size whatever the aspect ratio, so that batches need no padding."""
    rule: Literal["deformable", "relation"] = "deformable"
    """Family whose rounding of sizes is followed, in float32 for ``relation``. Not used if ``square``."""

    def build(self) -> EvalTransform:
        """Build the transform."""
        return EvalTransform(
            size=self.size,
            max_size=self.max_size,
            square=self.square,
            size_rule=deformable_size if self.rule == "deformable" else relation_eval_size,
        )


class TrainTransformConfig(Strict):
    """Augmentation. The defaults are the COCO recipe of DETR and its successors."""

    augment: Literal["none", "detr", "dense"] = "detr"
    """Augmentation of training images. ``none``: the largest scale only; ``detr``: flip, scale and crop; ``dense``:
    DEIM's, several images in one, colours, zooming out and crops, from 4 % to 90 % of the run."""
    scales: Sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Shorter sides in pixels, one drawn for each image; both sides if ``square``."""
    max_size: Side | None = 1333
    """Limit of the longer side in pixels; null for none. Not used if ``square``."""
    flip_probability: Probability = 0.5
    """How often an image is mirrored."""
    crop_probability: Probability = 0.5
    """How often an image is resized, cropped and resized again; 0 switches the crop off."""
    crop_scales: Sides = (400, 500, 600)
    """Shorter sides in pixels before the crop."""
    crop_range: tuple[Side, Side] = (384, 600)
    """Smallest and largest side of the crop in pixels, both included."""
    square: bool = False
    """Resize to size x size whatever the aspect ratio, so that batches need no padding."""
    rule: Literal["deformable", "relation"] = "deformable"
    """Family whose rounding of sizes is followed, in float64 for ``relation``; also before a crop."""
    tiles: Side | None = None
    """Side of tiles in pixels of the photo. Every other time one stands for a photo that is larger; null for none."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """How often images come in an epoch. ``repeat-factor``: those with rare classes more often, by the rule of LVIS."""
    min_box: float = Field(0.0, ge=0)
    """Boxes with a shorter side than this many pixels of the prepared image are dropped; 0 drops none."""

    @model_validator(mode="after")
    def _check_crop_range(self) -> TrainTransformConfig:
        if self.crop_range[0] > self.crop_range[1]:
            raise ValueError(f"crop_range must rise, found {self.crop_range[0]} before {self.crop_range[1]}")
        return self

    def build(self) -> TrainTransform:
        """Build the transform. What ``dense`` does before it is in ``data/dense.py``, with crops of its own."""
        is_plain = self.augment == "none"
        return TrainTransform(
            scales=(max(self.scales),) if is_plain else self.scales,
            max_size=self.max_size,
            flip_probability=0.0 if is_plain else self.flip_probability,
            crop_probability=self.crop_probability if self.augment == "detr" else 0.0,
            crop_scales=self.crop_scales,
            crop_range=self.crop_range,
            square=self.square,
            size_rule=deformable_size if self.rule == "deformable" else relation_size,
            min_box=self.min_box,
            tiles=self.tiles,
        )


def _target_size(image: Tensor, size: int, max_size: int | None, square: bool, rule: SizeRule) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return (size, size) if square else rule(height, width, size, max_size)


def _with_canvas(boxes: Tensor, image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload, no-any-return, unused-ignore]


def _plain(boxes: Tensor) -> Tensor:
    return boxes.as_subclass(Tensor)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Draw from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _choice(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]
