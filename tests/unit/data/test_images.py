"""Decoding: every mode to RGB, orientation once, and bad files refused with path and image id."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.images import read_image
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
