"""Decoding image files, safely: size limit before decoding, orientation applied once, every mode to RGB."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import Field
from torchvision import tv_tensors

from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.rgb import raw_mode, to_rgb, white_is_zero
from lora_detr.errors import DataError, printable
from lora_detr.regular_files import open_regular

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels, unless a caller says otherwise."""
MaxPixels = Annotated[int, Field(ge=1, le=100_000_000_000)]

MAX_BYTES = 2_000_000_000
"""Largest image file that is opened: more than ``MAX_PIXELS`` need without any compression."""

UNUSABLE = ("D18", "D23", "D25")
"""Codes of faults of one image file, without which a run could go on."""

_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and its values of images that lie on their side

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are decoded. Others of Pillow's start programs (EPS) or are of no use for photos."""


class Look(NamedTuple):
    """What an image looks like from afar.

    Attributes:
        hash: see ``difference_hash``.
        grey: 16 x 16 pixels, a byte for each.
    """

    hash: int
    grey: bytes


def read_image(record: ImageRecord, max_pixels: int = MAX_PIXELS, shorter: int | None = None) -> tv_tensors.Image:
    """Decode the file of a record.

    A JPEG that is to be shrunk can be decoded to a half, a quarter or an eighth of its sides, several times as fast.

    Transparency is dropped, not blended. Depths of more than 8 bits have the ranges of ``rgb``.

    Args:
        record: names the file and the size to expect after the EXIF orientation is applied.
        max_pixels: limit of width times height, checked before anything is decoded.
        shorter: pixels that the shorter side must have at least; None for all that it has.

    Returns:
        uint8 [3, height, width]; sides rounded up where it was decoded to less than its size.

    Raises:
        DataError: D18 (unreadable, or values out of range), D23 (size differs from the annotation file), D25 (too
            large); the message names the path and the image id.
    """
    where = f"{printable(record.path)} (image id {record.id})"
    with _opened(record.path, where) as image:
        scale, full = _reduced(image, max_pixels, shorter)
        pixels = _decode(image, max_pixels)
    height, width = pixels.shape[1:]
    if scale > 1:
        width, height = full
    if (width, height) != (record.width, record.height):
        raise DataError(
            f"{where}: the file is {width}x{height} after its EXIF orientation is applied, "
            f"the annotation file has {record.width}x{record.height}",
            "correct width and height, or the orientation of the file",
            code="D23",
        )
    return pixels


def _reduced(image: Image.Image, max_pixels: int, shorter: int | None) -> tuple[int, tuple[int, int]]:
    """Have a JPEG decoded to a part of its size if that suffices; return the divisor, and its size as it is shown."""
    width, height = image.size
    if shorter is None or not isinstance(image, JpegImageFile) or width * height > max_pixels:
        return 1, (width, height)
    scale = next((scale for scale in (8, 4, 2) if min(width, height) // scale >= shorter), 1)
    if scale > 1:
        image.draft(None, (width // scale, height // scale))
    is_sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return scale, (height, width) if is_sideways else (width, height)


def decode_file(path: Path, max_pixels: int = MAX_PIXELS, *, where: str = "") -> tv_tensors.Image:
    """Decode a file, as ``read_image`` does, whatever its size.

    Args:
        path: of the file.
        max_pixels: limit of width times height, checked before anything is decoded.
        where: what messages call the file; by default its path.

    Returns:
        uint8 [3, height, width].

    Raises:
        DataError: D18 (unreadable, or values out of range), D25 (too large).
    """
    with _opened(path, where) as image:
        return _decode(image, max_pixels)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height that ``decode_file`` would give, without decoding where that can be avoided.

    Raises:
        DataError: D18, the file cannot be read.
    """
    with _opened(path) as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF files, which Pillow turns by itself when it decodes
        if tags.get(_ORIENTATION) in _SIDEWAYS or (image.format == "PNG" and _has_late_text(image)):
            image.load()
        # Not the method of PNG files, which decodes those without EXIF to look behind the pixels.
        orientation = Image.Image.getexif(image).get(_ORIENTATION)
        width, height = image.size
        return (height, width) if orientation in _SIDEWAYS else (width, height)


def _has_late_text(image: Image.Image) -> bool:
    """Return whether a PNG file has something behind its pixels that may state an orientation."""
    file = getattr(image, "fp", None)
    if file is None:
        return False
    before = file.tell()
    file.seek(8)
    pixels = found = False
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND" and not found:
        pixels = pixels or head[4:] == b"IDAT"
        found = pixels and head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    file.seek(before)
    return found


def difference_hash(path: Path, max_pixels: int = MAX_PIXELS) -> int:
    """Return 64 bits that say where an image, 9 x 8 pixels small and grey, gets brighter from left to right.

    They hardly change with size, quality or brightness of the image.

    Raises:
        DataError: as of ``decode_file``.
    """
    return look_of(decode_file(path, max_pixels)).hash


def look_of(image: tv_tensors.Image) -> Look:
    """Return what an image [3, height, width] looks like from afar."""
    grey = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return Look(int.from_bytes(bits.tobytes(), "big"), grey.resize((16, 16), Image.Resampling.BOX).tobytes())


@contextmanager
def many_files() -> Iterator[None]:
    """Look at many files within: what is otherwise set up for each is set up once."""
    with _no_warnings:
        yield


@contextmanager
def _opened(path: Path, where: str = "") -> Iterator[Image.Image]:
    """Give a file that Pillow has opened, not decoded; all faults name it."""
    with (
        _faults_of(where or printable(path)),
        _no_warnings,
        _own_size_limit(),
        open_regular(path, MAX_BYTES) as file,
        Image.open(file, formats=_formats()) as image,
    ):
        yield image


def decode_pillow(image: Image.Image, max_pixels: int = MAX_PIXELS, *, where: str = "the image") -> tv_tensors.Image:
    """Return the pixels of an image of Pillow, as ``decode_file`` does those of a file.

    Args:
        image: any mode; left as it is. An EXIF orientation that it still carries is applied.
        max_pixels: limit of width times height.
        where: what messages call the image.

    Returns:
        uint8 [3, height, width].

    Raises:
        DataError: D18 (unreadable: Pillow decodes late; or values out of range), D25 (too large).
    """
    with _faults_of(where), _no_warnings:
        return _decode(image, max_pixels)


def _decode(image: Image.Image, max_pixels: int) -> tv_tensors.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{width}x{height} = {width * height:,} pixels, the limit is {max_pixels:,} (data.max_pixels)",
            "remove or shrink the image, or train with a higher limit: --set data.max_pixels=N",
            code="D25",
        )
    stored, inverted = raw_mode(image), white_is_zero(image)  # known until it is decoded or turned
    with _no_standard_error if image.format == "TIFF" else nullcontext():
        pixels = to_rgb(ImageOps.exif_transpose(image), stored, inverted)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


@contextmanager
def _faults_of(where: str) -> Iterator[None]:
    """Name the image in every fault."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.remedy, code=error.code) from None
    except UnidentifiedImageError as error:  # whose message is the path
        raise DataError(
            f"{where}: the image cannot be read: it is none of {', '.join(_formats())}",
            "replace or remove the file",
            code="D18",
        ) from error
    except Exception as error:  # decoders raise almost anything on damaged input
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{where}: the image cannot be read: {reason}", "replace or remove the file", code="D18"
        ) from error


class _Shared:
    """A context that the first thread to want it enters, and the last to want it leaves.

    Args:
        make: the context; what it changes is the whole process's.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock, self._count = make, threading.Lock(), 0
        self._context: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._context = self._make()
                self._context.__enter__()
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._context.__exit__(None, None, None)


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _closed_standard_error() -> Iterator[None]:
    """Send what is written to the descriptor itself, past Python, to nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # whoever has replaced or closed it is right
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# What Pillow remarks on a file that it reads all the same (a palette with transparency, a damaged EXIF tag) helps
# nobody who trains on ten thousand files; what it cannot read is an error, which names the file. libtiff writes its
# remarks where Python does not see them.
_no_warnings = _Shared(_ignored_warnings)
_no_standard_error = _Shared(_closed_standard_error)


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
