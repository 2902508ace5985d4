"""Tiles cover an image, overlap, and keep boxes on their objects."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchvision import tv_tensors

from lora_detr.data.tiles import OVERLAP, cut, windows
from lora_detr.data.transforms import TrainTransformConfig


@pytest.mark.parametrize(
    ("height", "width", "side"), [(100, 100, 100), (50, 300, 100), (101, 99, 100), (3000, 4000, 640), (1, 1, 10)]
)
def test_tiles_cover_the_image_with_an_overlap(height: int, width: int, side: int) -> None:
    covered = torch.zeros(height, width, dtype=torch.bool)
    found = windows(height, width, side)
    for top, left, tall, wide in found:
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide
        covered[top : top + tall, left : left + wide] = True
    assert covered.all()
    for axis in (0, 1):
        starts = sorted({window[axis] for window in found})
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(gap <= side * (1 - OVERLAP) + 1 for gap in gaps)


def test_tiles_of_a_photo_by_hand() -> None:
    # 300 - 100 = 200 pixels in steps of at most 80: three gaps, at 0, 67, 133, 200.
    assert [left for _, left, _, _ in windows(80, 300, 100)] == [0, 67, 133, 200]
    assert windows(80, 90, 100) == [(0, 0, 80, 90)]


@pytest.mark.parametrize("seed", range(60))
def test_boxes_of_a_tile_are_those_of_its_pixels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros((3, 90, 140), dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 20, 30, 50], [100, 5, 120, 30], [60, 60, 110, 88]])
    for label, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        image[label, y1:y2, x1:x2] = 255
    tile, found, labels = cut(image, boxes, torch.arange(3), 50, generator)
    assert tile.shape == (3, 50, 50)
    for box, label in zip(found.tolist(), labels.tolist(), strict=True):
        rows, columns = torch.nonzero(tile[label], as_tuple=True)
        seen = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert seen == box
    for label in set(range(3)) - set(labels.tolist()):
        assert int((tile[label] > 0).sum()) < 0.1 * int((image[label] > 0).sum())


def test_most_tiles_have_an_object_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    image, box = torch.zeros((3, 1000, 1000), dtype=torch.uint8), torch.tensor([[500.0, 500, 510, 512]])
    whole = [cut(image, box, torch.tensor([0]), 100, generator)[1] for _ in range(200)]
    share = sum(len(found) == 1 and (found[0, 2:] - found[0, :2]).tolist() == [10, 12] for found in whole) / 200
    assert 0.7 < share < 0.9


def test_an_object_larger_than_the_tile_and_an_image_without_objects() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros((3, 200, 200), dtype=torch.uint8)
    for _ in range(20):
        tile, boxes, _ = cut(image, torch.tensor([[0.0, 0, 200, 200]]), torch.tensor([0]), 80, generator)
        assert tile.shape == (3, 80, 80)
        assert boxes.tolist() in ([[0, 0, 80, 80]], [])
        tile, boxes, labels = cut(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 80, generator)
        assert (len(boxes), len(labels)) == (0, 0)


def test_training_sees_tiles_of_large_images_every_other_time() -> None:
    transform = TrainTransformConfig(tiles=64, augment="none", scales=(32,), square=True).build()
    marked = torch.zeros((3, 400, 400), dtype=torch.uint8)
    boxes, labels = torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([0])
    sides = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        _, found, _ = transform(tv_tensors.Image(marked), boxes, labels, generator)
        sides += [round(float(found[0, 2]), 2)] if len(found) else []
    # A box of 32 pixels is a twelfth of the photo, and half of a tile.
    assert sides.count(0.08) == pytest.approx(100, abs=25)
    small = torch.zeros((3, 60, 60), dtype=torch.uint8)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        assert transform(tv_tensors.Image(small), boxes, labels, generator)[1].shape == (1, 4)
