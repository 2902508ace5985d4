"""Decoding image files, safely: size limit before decoding, orientation applied once, every mode to RGB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision import tv_tensors

from lora_detr.data.coco import ImageRecord
from lora_detr.data.report import Problem
from lora_detr.errors import DataError

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels, unless a caller says otherwise."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are decoded. Others of Pillow's start programs (EPS) or are of no use for photos."""


def read_image(record: ImageRecord, max_pixels: int = MAX_PIXELS) -> tv_tensors.Image:
    """Decode the file of a record.

    Transparency is dropped, not blended. Greyscale of 16 bits keeps its upper 8.

    Args:
        record: names the file and the size to expect after the EXIF orientation is applied.
        max_pixels: limit of width times height, checked before anything is decoded.

    Returns:
        uint8 [3, height, width].

    Raises:
        DataError: D18 (unreadable), D23 (size differs from the annotation file), D25 (too large); the message names
            the path and the image id.
    """
    where = f"{record.path} (image id {record.id})"
    try:
        with _own_size_limit(), Image.open(record.path, formats=_formats()) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise DataError(
                    f"{where}: {width}x{height} = {width * height:,} pixels, the limit is {max_pixels:,}",
                    "remove or shrink the image, or raise the limit",
                    code="D25",
                )
            pixels = _rgb(ImageOps.exif_transpose(file))
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged input
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{where}: the image cannot be read: {reason}", "replace or remove the file", code="D18"
        ) from error
    height, width = pixels.shape[:2]
    if (width, height) != (record.width, record.height):
        raise DataError(
            f"{where}: the file is {width}x{height} after its EXIF orientation is applied, "
            f"the annotation file says {record.width}x{record.height}",
            "correct width and height, or the orientation of the file",
            code="D23",
        )
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def find_unreadable(records: Iterable[ImageRecord], max_pixels: int = MAX_PIXELS) -> dict[int, Problem]:
    """Decode every image and return the problem of each that fails, by image id.

    For checking a data set before a run (``--verify decode``), and for leaving bad images out of it.
    """
    problems = {}
    for record in records:
        try:
            read_image(record, max_pixels)
        except DataError as error:
            problems[record.id] = Problem(error.code, error.message)
    return problems


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3]."""
    if image.mode.startswith("I;16"):
        grey = (np.array(image, dtype=np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in image.info and image.mode != "RGB":
        image = image.convert("RGBA")  # Pillow reads a palette's transparency only on this way
    return np.array(image.convert("RGB"), dtype=np.uint8)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Switch off Pillow's limit, which warns on one size and raises on another, in favour of ours."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
