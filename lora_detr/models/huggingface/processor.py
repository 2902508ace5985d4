"""How images are prepared for a model of ``transformers``: from its image processor's file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.json_value import JSON
from lora_detr.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD
from lora_detr.models.huggingface.family import Family
from lora_detr.models.pixels import Mean, Std

FILE = "preprocessor_config.json"

NOTHING: tuple[Mean, Std] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Statistics of pixels in [0, 1] that are left as they are."""

# Of the detectors whose processor resizes by the shorter side.
SHORTER, LONGER = 800, 1333
SQUARE = 640


@dataclass(frozen=True)
class Preparation:
    """What an image processor does.

    Attributes:
        size: shorter side in pixels, or both sides if ``square``.
        max_size: limit of the longer side; None for no limit.
        square: whether the aspect ratio is given up.
        divisor: padded sizes are multiples of it.
        mean: of the pixels.
        std: of the pixels.
        note: what was taken for want of a file, or None.
    """

    size: int
    max_size: int | None
    square: bool
    divisor: int
    mean: Mean
    std: Std
    note: str | None = None


def read_processor(source: str) -> dict[str, JSON] | None:
    """Return the content of the processor's file, of a folder or of a name on the hub; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, FILE, _raise_exceptions_for_missing_entries=False)
        return None if path is None else cast(dict[str, JSON], json.loads(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: {FILE} cannot be read: {line}", "take another copy of it") from error


def prepare(
    processor: Mapping[str, JSON] | None, family: Family, config: Mapping[str, JSON], source: str
) -> Preparation:
    """Return how images are prepared.

    Args:
        processor: content of its file; without it, what the family's own weights were trained with.
        family: of the model.
        config: of the model.
        source: for messages.

    Raises:
        ConfigError: images would not be resized, or to something that cannot be expressed.
    """
    divisor = family.size_multiple(config)
    plain = family.ignores_mask
    if processor is None:
        size = SQUARE if plain else SHORTER
        shape = f"{size} x {size}" if plain else f"shorter side {size}, longer at most {LONGER}"
        pixels = "pixels / 255" if plain else "ImageNet's mean and deviation"
        mean, std = NOTHING if plain else (IMAGENET_MEAN, IMAGENET_STD)
        note = f"{source} has no {FILE}: images are prepared as for the family's own weights: {shape}, {pixels}"
        return Preparation(size, None if plain else LONGER, plain, divisor, mean, std, note)
    statistics: Any = NOTHING
    if processor.get("do_normalize", not plain):
        mean_given, std_given = processor.get("image_mean"), processor.get("image_std")
        statistics = (tuple(mean_given or IMAGENET_MEAN), tuple(std_given or IMAGENET_STD))  # type: ignore[arg-type]
    size, longest, square = _size(processor, source)
    if family.ignores_mask and not square:
        raise ConfigError(
            f"{source}: {FILE} keeps the aspect ratio, but this family does not see what is padding",
            'give it a size of {"height": N, "width": N}',
        )
    if square and size % divisor:
        raise ConfigError(f"{source}: {FILE}: size {size} is no multiple of {divisor}, which this model needs")
    return Preparation(size, longest, square, divisor, *statistics)


def _size(processor: Mapping[str, JSON], source: str) -> tuple[int, int | None, bool]:
    """Return the shorter side, the limit of the longer one, and whether the image becomes square."""
    size = processor.get("size")
    if isinstance(size, int):
        limit = processor.get("max_size")
        return size, limit if isinstance(limit, int) else None, False
    given = size if isinstance(size, dict) else {}
    shorter, longer = given.get("shortest_edge"), given.get("longest_edge")
    height, width = given.get("height"), given.get("width")
    if isinstance(shorter, int):
        return shorter, longer if isinstance(longer, int) else None, False
    if isinstance(height, int) and height == width:
        return height, None, True
    raise ConfigError(
        f"{source}: {FILE}: size is {json.dumps(size)}: expected shortest_edge, or height and width that are equal",
        "change it to a size that the model can be given",
    )


def processor_file(kept: Mapping[str, JSON], model_type: str, preparation: Preparation) -> dict[str, JSON]:
    """Return the content of a processor's file for a model that was trained here.

    Args:
        kept: of the file that the training started from; empty where there was none.
        model_type: of the model.
        preparation: how images are prepared now.
    """
    size: dict[str, JSON] = {"height": preparation.size, "width": preparation.size}
    if not preparation.square:
        size = {"shortest_edge": preparation.size}
        if preparation.max_size is not None:
            size["longest_edge"] = preparation.max_size
    is_real_time = model_type in ("rt_detr", "rt_detr_v2", "d_fine")
    name = "RTDetrImageProcessor" if is_real_time else "DeformableDetrImageProcessor"
    normalises = (preparation.mean, preparation.std) != NOTHING
    written: dict[str, JSON] = {
        "image_processor_type": name,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_pad": not preparation.square,
        **kept,
        "size": size,
        "do_normalize": normalises,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }
    return {key: value for key, value in written.items() if key != "max_size"}
