"""Images that an exported file is proven on, and calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_detr.checkpoints.opened import OpenedRun
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import ConfigError, LoraDetrError, counted
from lora_detr.evaluation.predictor import ImageSource

MOST = 500
"""Images that AP is measured on, the first of the split: enough to show a difference, and minutes on a CPU."""
CALIBRATED = 100

# Heights and widths of noise images, when the photos are gone.
NOISE_SIZES = ((255, 319), (320, 223), (480, 640))


@dataclass(frozen=True)
class ProofImages:
    """What a file is proven on.

    Attributes:
        sources: files, or noise.
        described: what they are.
        labelled: images with objects, on which AP is measured; None without any.
        train: images that ranges are taken from; None without any.
    """

    sources: list[ImageSource]
    described: str
    labelled: CocoSplit | None
    train: CocoSplit | None


def find_images(opened: OpenedRun | StrippedFile, data: Path | None, count: int) -> ProofImages:
    """Return images of a data set, or noise where there is none.

    Args:
        opened: the model; a run knows its data.
        data: a data set instead of it, of any layout.
        count: of images that are compared one by one.

    Raises:
        LoraDetrError: ``data`` was given and cannot be used.
    """
    own = opened.config.data.path if isinstance(opened, OpenedRun) else None
    place = data or (None if own is None else Path(own))
    if place is not None:
        try:
            how = opened.config.data.read_as if isinstance(opened, OpenedRun) and data is None else ReadAs()
            return _of_data(place, opened, count, how)
        except LoraDetrError:
            if data is not None:
                raise  # a run's own data may be gone, and noise serves as well
    generator = np.random.default_rng(0)
    sizes = [NOISE_SIZES[i % len(NOISE_SIZES)] for i in range(count)]
    noise: list[ImageSource] = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return ProofImages(noise, counted(count, "noise image"), None, None)


def _of_data(place: Path, opened: OpenedRun | StrippedFile, count: int, how: ReadAs) -> ProofImages:
    config = opened.deployment
    outside = isinstance(opened, OpenedRun) and opened.config.data.allow_outside
    policy = Policy("none", False, "skip", outside, config.max_pixels)
    paths = find_splits(place, how)
    train = policy.load(paths.train).with_categories(config.categories)
    val = None
    if paths.val is not None:
        val = policy.load(paths.val).with_categories(config.categories)
    shown = val or train
    if not len(shown):
        raise ConfigError(f"{place}: has no image", "give another --data")
    if val is not None and len(val) > MOST:
        val = val.subset(val.records.ids[:MOST].tolist())
    sources: list[ImageSource] = [shown.records[i].path for i in range(min(count, len(shown)))]
    described = f"{counted(len(sources), 'photo')} of {shown.report.file}"
    if len(train) > CALIBRATED:
        train = train.subset(train.records.ids[:CALIBRATED].tolist())
    return ProofImages(sources, described, val, train)
