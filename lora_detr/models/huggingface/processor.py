"""How images are prepared for a model of ``transformers``: from its image processor's file, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from lora_detr.config.statistics import Mean, Std
from lora_detr.errors import CheckpointError
from lora_detr.json_value import JSON
from lora_detr.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD
from lora_detr.models.huggingface.family import Family
from lora_detr.models.huggingface.hub import is_local

FILE = "preprocessor_config.json"

NOTHING: tuple[Mean, Std] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Statistics of pixels in [0, 1] that are left as they are."""

# Of the detectors whose processor resizes by the shorter side.
SHORTER, LONGER = 800, 1333
SQUARE = 640
# Limit of the longer side that limits nothing: a processor must have one.
UNLIMITED = 100_000


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
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    try:
        found = get_image_processor_config(source, local_files_only=is_local(source))
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {json.dumps(found)}")
    except (AttributeError, OSError, TypeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: {FILE} cannot be read: {line}", "take another copy of it") from error
    return cast(dict[str, JSON], found) or None


def prepare(
    processor: Mapping[str, JSON] | None, family: Family, config: Mapping[str, JSON], source: str
) -> Preparation:
    """Return how images are prepared.

    Args:
        processor: content of its file; what it lacks is as the family's own weights were trained.
        family: of the model.
        config: of the model.
        source: for messages.

    Raises:
        CheckpointError: a value is malformed, or asks for what the model cannot be given or ours does not do.
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
    file = _File({key: value for key, value in processor.items() if value is not None}, f"{source}: {FILE}")
    mean, std = file.statistics() if file.flag("do_normalize", not plain) else NOTHING
    file.check_pixels()
    longest: int | None
    size, longest, square = (SQUARE, None, True) if plain else (SHORTER, LONGER, False)
    if "size" in file.values:
        size, longest, square = file.size()
    if plain and not square:
        raise CheckpointError(
            f"{file.name} keeps the aspect ratio, but this family does not see what is padding",
            'give it a size of {"height": N, "width": N}',
        )
    if square and size % divisor:
        raise CheckpointError(
            f"{file.name}: size {size} is no multiple of {divisor}, which this model needs", "change it to one"
        )
    return Preparation(size, longest, square, divisor, mean, std)


@dataclass(frozen=True)
class _File:
    """What a processor's file has, without nulls, which stand for defaults there."""

    values: Mapping[str, JSON]
    name: str

    def size(self) -> tuple[int, int | None, bool]:
        """Return the shorter side, the limit of the longer one, and whether the image becomes square."""
        size, limit = self.values["size"], self.values.get("max_size", LONGER)
        given = size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": limit}  # of old versions
        shorter, longer = given.get("shortest_edge"), given.get("longest_edge") or UNLIMITED
        height, width = given.get("height"), given.get("width")
        if _is_side(shorter) and _is_side(longer):
            return shorter, None if longer == UNLIMITED else longer, False  # type: ignore[return-value]
        if _is_side(height) and height == width:
            return height, None, True  # type: ignore[return-value]
        raise self.fault(
            f"size is {json.dumps(size)}: expected shortest_edge and longest_edge, or height and width that are equal"
        )

    def statistics(self) -> tuple[Mean, Std]:
        """Return mean and standard deviation for pixels in [0, 1]."""
        found = []
        for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
            value = self.values.get(key, list[JSON](default))
            lowest = 1e-6 if key == "image_std" else -100_000
            if not isinstance(value, list) or len(value) != 3 or not all(_is_number(one, lowest) for one in value):
                raise self.fault(f"{key} is {json.dumps(value)}: expected three numbers from {lowest:g} to 100000")
            found.append(tuple(map(float, value)))  # type: ignore[arg-type]
        return cast(tuple[Mean, Std], tuple(found))

    def check_pixels(self) -> None:
        """Refuse what ours does not do."""
        if not self.flag("do_resize", True):
            raise self.fault("do_resize is false, but images are always resized")
        factor = self.values.get("rescale_factor", 1 / 255)
        if not _is_number(factor, 0):
            raise self.fault(f"rescale_factor is {json.dumps(factor)}: expected a number")
        scale = float(factor) if self.flag("do_rescale", True) else 1.0  # type: ignore[arg-type]
        if abs(scale * 255 - 1) > 1e-6:
            raise self.fault(f"pixels are multiplied by {scale:g}, not 1/255")
        self.flag("do_pad", True)  # ours pads whatever it is

    def flag(self, key: str, default: bool) -> bool:
        """Return a value that must be true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(f"{key} is {json.dumps(value)}: expected true or false")
        return value

    def fault(self, message: str) -> CheckpointError:
        """Return an error that names the file."""
        return CheckpointError(f"{self.name}: {message}", "change it to what the model was trained with")


def _is_side(value: JSON) -> bool:
    return type(value) is int and 1 <= value <= UNLIMITED


def _is_number(value: JSON, lowest: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and lowest <= value <= 100_000  # type: ignore[arg-type, operator]


def processor_file(kept: Mapping[str, JSON], model_type: str, preparation: Preparation) -> dict[str, JSON]:
    """Return the content of a processor's file for a model that was trained here.

    Args:
        kept: of the file that the training started from; empty where there was none.
        model_type: of the model.
        preparation: how images are prepared now.
    """
    size: dict[str, JSON] = {"height": preparation.size, "width": preparation.size}
    if not preparation.square:
        size = {"shortest_edge": preparation.size, "longest_edge": preparation.max_size or UNLIMITED}
    is_real_time = model_type in ("rt_detr", "rt_detr_v2", "d_fine")
    name = "RTDetrImageProcessor" if is_real_time else "DeformableDetrImageProcessor"
    written: dict[str, JSON] = {
        "image_processor_type": name,
        **kept,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_pad": not preparation.square,
        "size": size,
        "do_normalize": (preparation.mean, preparation.std) != NOTHING,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }
    # What would contradict the size.
    return {key: value for key, value in written.items() if key not in ("max_size", "pad_size")}
