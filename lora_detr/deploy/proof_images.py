"""Batches on which a stripped detector is compared with its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lora_detr.checkpoints.opened import OpenedRun
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import collate
from lora_detr.errors import LoraDetrError, counted
from lora_detr.models import HuggingFaceConfig
from lora_detr.recipe.loaders import read_splits
from lora_detr.structures import Images, Target

# Sides of noise images, when the photos are gone; odd on purpose, and each pair of them needs padding.
NOISE_SIZES = ((255, 319), (241, 257), (320, 223), (199, 301))


def proof_images(opened: OpenedRun, count: int) -> tuple[list[Images], str]:
    """Return batches of photos of the run's validation split, or of noise if the data is gone.

    Every image is cut to an odd size of its own, unless the detector takes images of certain sizes only. The first half
    comes one by one, the rest in padded pairs.

    Args:
        opened: the run; its config says where the data was.
        count: number of images, at least 1.
    """
    described = f"{count} noise images"
    pixels: list[torch.Tensor] = []
    path = opened.config.data.path
    if path is not None and Path(path).exists():
        try:
            splits = read_splits(Path(path), opened.config.data)
            split = splits.val or splits.train
            data = opened.config.data
            dataset = CocoDataset(split, data.evaluation.build(), seed=0, max_pixels=data.max_pixels)
            pixels = [dataset[i % len(dataset)][0] for i in range(count)]
            described = f"{counted(count, 'photo')} of {split.report.file}"
        except LoraDetrError:
            # Data that changed since is no obstacle to a proof: noise serves as well.
            pixels = []
    if not pixels:
        generator = torch.Generator().manual_seed(0)
        prepared = opened.config.data.evaluation
        fixed = [(prepared.size, prepared.size)] if prepared.square else NOISE_SIZES
        sizes = [fixed[i % len(fixed)] for i in range(count)]
        pixels = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    if isinstance(opened.config.model, HuggingFaceConfig) and opened.config.data.size_divisor > 1:
        return _batches(pixels, opened.config.data.size_divisor), described
    cut = [image[:, : image.shape[1] - 2 * i - 1, : image.shape[2] - 4 * i - 3] for i, image in enumerate(pixels)]
    cut = [small if min(small.shape) > 0 else whole for small, whole in zip(cut, pixels, strict=True)]
    # An even side is cut once more: odd sizes are what level shapes and padding get wrong first.
    cut = [image[:, : _odd(image.shape[1]), : _odd(image.shape[2])] for image in cut]
    return _batches(cut), described


def _batches(pixels: Sequence[torch.Tensor], size_divisor: int = 1) -> list[Images]:
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0, (1, 1))
    singles = max(1, len(pixels) // 2)
    groups = [[image] for image in pixels[:singles]] + [pixels[i : i + 2] for i in range(singles, len(pixels), 2)]
    return [collate([(image, empty) for image in group], size_divisor).images for group in groups]


def _odd(side: int) -> int:
    return side - 1 + side % 2
