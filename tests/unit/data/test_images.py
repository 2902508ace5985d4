"""Decoding: every mode to RGB, orientation once, and bad files refused with path and image id."""

from __future__ import annotations

import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.images import decode_file, decode_pillow, difference_hash, image_size, read_image
from lora_detr.errors import DataError

RED = (200, 30, 40)


def _record(path: Path, width: int = 6, height: int = 4) -> ImageRecord:
    boxes, ids = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return ImageRecord(7, path.name, path, width, height, boxes, ids)


def _fails(path: Path, code: str, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        read_image(_record(path), **options)
    assert caught.value.code == code
    message = str(caught.value)
    assert str(path) in message
    assert "image id 7" in message
    return message


# What each format can hold, by Pillow.
MODES = {
    "png": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"),
    "jpg": ("RGB", "L", "1", "CMYK"),
    "gif": ("RGB", "RGBA", "P", "L", "LA", "1"),
    "webp": ("RGB", "RGBA", "P", "PA", "L", "LA", "1", "CMYK"),
    "tif": ("RGB", "RGBA", "P", "PA", "L", "LA", "1", "CMYK", "I;16"),
    "bmp": ("RGB", "RGBA", "P", "L", "1"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_rgb_d22(tmp_path: Path, suffix: str, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 200 * 256 + 17, dtype=np.uint16))
        expected = (200, 200, 200)
    elif mode in ("L", "LA", "1"):
        image = Image.new("L", (6, 4), 255).convert(mode)
        expected = (255, 255, 255)
    else:
        image = Image.new("RGB", (6, 4), RED).convert(mode)
        expected = RED
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    pixels = read_image(_record(path))
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, 4, 6)
    assert (pixels.float().mean((1, 2)) - torch.tensor(expected)).abs().max() < 8


def test_palette_with_transparency_gives_the_palette_colours_d22(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), RED).quantize(4)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    assert read_image(_record(tmp_path / "x.png"))[:, 0, 0].tolist() == list(RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_d23(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[0, 0] = 255  # the corner tells where the first stored pixel went
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(stored).save(path, exif=exif)
    turned = orientation >= 5
    record = _record(path, *((4, 6) if turned else (6, 4)))
    y, x = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    assert read_image(record)[0, y, x] == 255
    if turned:
        assert "the file is 4x6" in _fails(path, "D23")


def test_size_mismatch_names_both_sizes_d23(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "x.png")
    message = _fails(tmp_path / "x.png", "D23")
    assert "5x4" in message
    assert "6x4" in message


@pytest.mark.parametrize("kind", ["truncated", "empty", "html", "directory", "missing", "eps", "bad-crc"])
def test_unreadable_files_d18_d19(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    if kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    elif kind == "eps":
        path.unlink()
        Image.fromarray(noise).save(tmp_path / "x.eps")
        (tmp_path / "x.eps").rename(path)
    else:
        middle = len(whole) // 2
        damaged = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"truncated": whole[:-40], "empty": b"", "html": b"<html>", "bad-crc": damaged}[kind])
    _fails(path, "D18")


def test_bomb_is_refused_before_decoding_d25(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20032, 20032)).save(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = _fails(path, "D25")
    assert "20032x20032" in message
    assert "100,000,000" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_limit_can_be_set_d25(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "x.png")
    assert "the limit is 23" in _fails(tmp_path / "x.png", "D25", max_pixels=23)
    assert read_image(_record(tmp_path / "x.png"), max_pixels=24).shape == (3, 4, 6)


def deep_files(folder: Path, grey: NDArray[np.uint8]) -> dict[str, Path]:
    """Write one picture in every depth and container that Pillow has for it."""
    up = grey.astype(np.uint16) * 257
    written = {
        "I;16 png": ("a.png", Image.fromarray(up), {}),
        "I;16 tif": ("b.tif", Image.fromarray(up), {}),
        "I;16 jp2": ("c.jp2", Image.fromarray(up), {"irreversible": False}),
        "I tif": ("d.tif", Image.fromarray(up.astype(np.int32)), {}),
        "I pgm": ("e.pgm", Image.fromarray(up.astype(np.int32)), {}),
        "F tif": ("f.tif", Image.fromarray((grey / np.float32(255)).astype(np.float32)), {}),
        "F pfm": ("g.pfm", Image.fromarray((grey / np.float32(255)).astype(np.float32)), {}),
        "I;16 tif, white is 0": ("h.tif", Image.fromarray(65535 - up), {"tiffinfo": {262: 0}}),
    }
    for name, image, options in written.values():
        image.save(folder / name, **options)
    paths = {kind: folder / name for kind, (name, _, _) in written.items()}
    for maximum in (1023, 4095):  # between the depths of types
        path = folder / f"{maximum}.pgm"
        values = np.round(grey / 255 * maximum).astype(">u2")
        path.write_bytes(f"P5 {grey.shape[1]} {grey.shape[0]} {maximum}\n".encode() + values.tobytes())
        paths[f"pgm to {maximum}"] = path
    return paths


def test_every_depth_gives_the_picture_that_it_shows_d22(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 24).round().astype(np.uint8).reshape(4, 6)
    paths = deep_files(tmp_path, grey)
    for kind, path in paths.items():
        for pixels in (read_image(_record(path)), decode_file(path)):
            difference = np.abs(pixels.numpy().astype(int) - grey).max()
            assert difference <= 1, kind
    assert len(paths) == 10


def test_colour_and_grey_of_16_and_12_bits_written_by_hand_d22(tmp_path: Path) -> None:
    tiff = tmp_path / "rgb.tif"  # Pillow writes neither of these
    values = np.arange(72, dtype="<u2").reshape(4, 6, 3) * 900
    tiff.write_bytes(tiff_of(values.tobytes(), bits=16, channels=3))
    assert np.array_equal(decode_file(tiff).permute(1, 2, 0).numpy(), (values >> 8).astype(np.uint8))
    grey = np.arange(24).reshape(4, 6) * 178  # up to 4094
    packed = bytearray()
    for first, second in zip(grey.flat[::2], grey.flat[1::2], strict=True):
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    twelve = tmp_path / "12.tif"
    twelve.write_bytes(tiff_of(bytes(packed), bits=12, channels=1))
    assert np.array_equal(decode_file(twelve)[0].numpy(), grey >> 4)


def tiff_of(pixels: bytes, bits: int, channels: int) -> bytes:
    """Return an uncompressed little-endian TIFF file of 6 x 4 pixels."""
    entries = [(256, 6), (257, 4), (258, bits), (259, 1), (262, 2 if channels == 3 else 1)]
    entries += [(273, 200), (277, channels), (278, 4), (279, len(pixels))]
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        if tag == 258 and channels == 3:  # a number for each channel does not fit in here
            directory += struct.pack("<HHII", tag, 3, 3, 180)
        else:
            directory += struct.pack("<HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    return head.ljust(180, b"\0") + struct.pack("<HHH", bits, bits, bits).ljust(20, b"\0") + pixels


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.linspace(0, 1e6, 24).astype(np.int32),
            "(integers) must be from 0 (black) to 65535 (white), found 0 to 1000000",
        ),
        (np.linspace(-5, 99, 24).astype(np.int32), "found -5 to 99"),
        (np.linspace(0, 255, 24).astype(np.int32), "(integers) from 0 to 255 are all 0 in 8 bits"),
        (np.linspace(3, 200, 24).astype(np.uint16), "(16 bits) from 3 to 200 are all 0 in 8 bits"),
        (
            np.linspace(0, 255, 24).astype(np.float32),
            "(floating point) must be from 0 (black) to 1 (white), found 0.0 to 255.0",
        ),
        (np.full(24, np.nan, dtype=np.float32), "found nan to nan"),
    ],
)
def test_values_out_of_their_range_are_refused_d18(values: NDArray[Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(values.reshape(4, 6)).save(path)
    message = _fails(path, "D18")
    assert said in message
    assert "convert the file to 8 bits" in message
    with pytest.raises(DataError, match="D18"):
        decode_pillow(Image.fromarray(values.reshape(4, 6)))


def test_an_image_that_would_become_one_colour_is_refused_d18(tmp_path: Path) -> None:
    drawing = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    drawing.putpixel((2, 2), (0, 0, 0, 255))
    drawing.save(tmp_path / "x.png")
    assert "transparency" in _fails(tmp_path / "x.png", "D18")
    (tmp_path / "x.tif").write_bytes(tiff_of(np.arange(72, dtype="<u2").tobytes(), bits=16, channels=3))
    assert "upper 8 of 16 bits" in _fails(tmp_path / "x.tif", "D18")
    for mode, colour in (("RGB", RED), ("RGBA", (*RED, 9)), ("L", 0), ("I;16", 3)):  # one colour in the file too
        Image.new(mode, (6, 4), colour).save(tmp_path / "x.png")
        assert len(read_image(_record(tmp_path / "x.png")).flatten(1).unique(dim=1)[0]) == 1


def _with_chunk_behind_pixels(path: Path) -> None:
    """Move the EXIF of a PNG file behind its pixels, where the format allows it too."""
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + int.from_bytes(content[start : start + 4], "big") + 12
    path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "late.png", "a.tif", "a.webp", "a.bmp"])
def test_the_size_of_a_file_is_that_of_its_decoded_pixels(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    Image.new("RGB", (7, 5), (9, 99, 199)).save(path, exif=exif)
    if name == "late.png":
        _with_chunk_behind_pixels(path)
    width, height = image_size(path)
    assert (3, height, width) == tuple(decode_file(path).shape)
    if name != "a.bmp":
        assert (width < height) == (orientation > 4)


def test_the_size_of_no_image_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg: the image cannot be read") as caught:
        image_size(path)
    assert caught.value.code == "D18"


def test_the_hash_of_an_image_hardly_changes_with_size_quality_and_brightness(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    first = Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((270, 240))
    first.save(tmp_path / "a.png")
    first.resize((90, 80)).save(tmp_path / "b.jpg", quality=60)
    ImageEnhance.Brightness(first).enhance(0.7).save(tmp_path / "c.png")
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "d.png")
    a, b, c, d = (difference_hash(tmp_path / name) for name in ("a.png", "b.jpg", "c.png", "d.png"))
    assert max((a ^ b).bit_count(), (a ^ c).bit_count()) <= 3
    assert (a ^ d).bit_count() > 20


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("shorter", "scale"), [(None, 1), (301, 1), (300, 2), (150, 4), (75, 8), (1, 8)])
def test_a_large_jpeg_is_decoded_to_what_is_needed(
    shorter: int | None, scale: int, orientation: int, tmp_path: Path
) -> None:
    wide, high = 801, 601
    picture = Image.linear_gradient("L").resize((wide, high)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "x.jpg", exif=exif, quality=95)
    shown = (wide, high) if orientation == 1 else (high, wide)
    record = _record(tmp_path / "x.jpg", *shown)
    pixels = read_image(record, shorter=shorter)
    assert pixels.shape == (3, -(-shown[1] // scale), -(-shown[0] // scale))
    whole = torch.nn.functional.interpolate(read_image(record)[None].float(), pixels.shape[1:], mode="area")[0]
    assert float((pixels.float() - whole).abs().mean()) < 2.5
    with pytest.raises(DataError, match=f"the file is {shown[0]}x{shown[1]} after its EXIF"):
        read_image(_record(tmp_path / "x.jpg", shown[0] + 1, shown[1]), shorter=shorter)
    with pytest.raises(DataError, match="the limit is 1,000"):
        read_image(record, max_pixels=1000, shorter=shorter)


def test_other_formats_are_decoded_in_full(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), RED).save(tmp_path / "x.png")
    record = _record(tmp_path / "x.png", 640, 480)
    assert read_image(record, shorter=10).shape == (3, 480, 640)
