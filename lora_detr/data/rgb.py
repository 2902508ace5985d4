"""Decoded images of every mode and depth as 8-bit RGB: each depth has a stated range, and nothing is cut off silently.

| pixels | black to white |
|---|---|
| 1 to 8 bits per channel, colour of 16 bits per channel | the whole range of the type |
| grey, 16 bits | 0 to 65535 |
| grey, 12 bits (TIFF) | 0 to 4095 |
| grey, 16 bits with a sign, or 32-bit integers | 0 to 65535; an image with a value outside of it is refused |
| floating point | 0 to 1; an image with a value outside of it is refused |

An image that becomes a single colour although its file holds more (only the lower 8 of 16 bits are used; a drawing is
in the transparency alone) is refused too: a detector would see nothing, and nobody would know.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_detr.errors import DataError

Pixels = NDArray[np.uint8]

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF: tag, and its value of images whose white is 0
_REMEDY = "convert the file to 8 bits as it should look, or remove it"


def raw_mode(image: Image.Image) -> str:
    """Return how a file stores its pixels, such as ``RGB;16B``; empty where that is unknown or they are decoded."""
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles else ""
    return str(stored[0] if isinstance(stored, tuple) and stored else stored)


def white_is_zero(image: Image.Image) -> bool:
    """Return whether a TIFF file stores white as 0, which Pillow leaves as it is beyond 8 bits."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def to_rgb(image: Image.Image, stored: str = "", inverted: bool = False) -> Pixels:
    """Return the pixels of an image as RGB.

    Transparency is dropped, not blended.

    Args:
        image: any mode.
        stored: how its file stores pixels (see ``raw_mode``).
        inverted: white is 0 (see ``white_is_zero``).

    Returns:
        uint8 [height, width, 3].

    Raises:
        DataError: D18, values outside the range of their type (table above), or an image that becomes one colour.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey(image, stored, inverted)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow does not convert at once
    if "transparency" in image.info and image.mode != "RGB":
        image = image.convert("RGBA")  # Pillow reads a palette's transparency only on this way
    pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    if ";16" in stored and _is_constant(pixels):
        raise DataError(
            f"the upper 8 of 16 bits are the same in all pixels: {pixels[0, 0].tolist()}", _REMEDY, code="D18"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa") and _is_constant(pixels):
        lowest, highest = image.getchannel("A").getextrema() if image.mode != "RGBa" else (0, 0)
        if lowest != highest:
            raise DataError("the image has one colour, all of its content is in the transparency", _REMEDY, code="D18")
    return pixels


def _deep_grey(image: Image.Image, stored: str, inverted: bool) -> Pixels:
    """Return greyscale of more than 8 bits as RGB."""
    values = np.array(image)
    if image.mode == "F":
        white, bits = 1, "floating point"
    elif stored == "I;12":
        white, bits = 4095, "12 bits"
    else:
        white, bits = 65535, "integers" if image.mode == "I" else "16 bits"
    lowest, highest = values.min().item(), values.max().item()
    if not (lowest >= 0 and highest <= white):  # also for NaN
        raise DataError(
            f"grey pixels ({bits}) must be from 0 (black) to {white} (white), found {lowest} to {highest}",
            _REMEDY,
            code="D18",
        )
    # Integers keep their upper 8 bits, as the decoders of colour do.
    scaled = np.rint(values * 255) if image.mode == "F" else values >> (4 if white == 4095 else 8)
    grey: Pixels = scaled.astype(np.uint8)
    if lowest != highest and _is_constant(grey):
        raise DataError(
            f"grey pixels ({bits}) from {lowest} to {highest} are all {grey.flat[0]} in 8 bits, "
            f"since 0 is black and {white} white",
            _REMEDY,
            code="D18",
        )
    return np.repeat((255 - grey if inverted else grey)[:, :, None], 3, axis=2)


def _is_constant(pixels: Pixels) -> bool:
    """Return whether all pixels, [H, W] or [H, W, C], are the same."""
    return bool((pixels == pixels[:1, :1]).all())
