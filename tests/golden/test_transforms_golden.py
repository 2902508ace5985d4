"""Sizes and boxes after flip, crop and resize, against the reference values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from lora_detr.data.transforms import crop, finish, flip, resize, resized_size
from tests.golden.store import folder, load_json, require

NAME = "transforms"


def _entries(group: str) -> list[Any]:
    return list(load_json(NAME)[group]) if (folder() / f"{NAME}.json").is_file() else []


@pytest.mark.parametrize("group", ["resize_table", "box_cases"])
def test_values_exist(group: str) -> None:
    require(_entries(group), f"{NAME} {group}")


@pytest.mark.parametrize(
    "entry", _entries("resize_table"), ids=lambda entry: f"{entry['image_wh']}-{entry['shorter']}-{entry['longest']}"
)
def test_resized_size(entry: dict[str, Any]) -> None:
    width, height = entry["image_wh"]
    expected_width, expected_height = entry["out_wh_deformable"]
    assert resized_size(height, width, entry["shorter"], entry["longest"]) == (expected_height, expected_width)


def _close(boxes: Tensor, expected: list[list[float]], tolerance: float = 1e-4) -> None:
    assert torch.allclose(boxes, torch.tensor(expected).reshape(-1, 4), rtol=0, atol=tolerance)


@pytest.mark.parametrize("entry", _entries("box_cases"), ids=lambda entry: str(entry["image_wh"]))
def test_chain_of_boxes(entry: dict[str, Any]) -> None:
    width, height = entry["image_wh"]
    image: Tensor = tv_tensors.Image(torch.zeros((3, height, width), dtype=torch.uint8))
    boxes = torch.tensor(entry["boxes_xyxy"])
    labels = torch.arange(len(boxes))

    image, boxes = flip(image, boxes)
    _close(boxes, entry["flip"])
    image, boxes, labels = crop(image, boxes, labels, entry["crop_top_left_height_width"])
    assert labels.tolist() == entry["kept"]
    _close(boxes, entry["after_flip_crop"])
    new_height, new_width = resized_size(image.shape[1], image.shape[2], 480, 1333)
    assert [new_width, new_height] == entry["resized_wh_480_1333"]
    image, boxes = resize(image, boxes, (new_height, new_width))
    _close(boxes, entry["after_flip_crop_resize"], 1e-3)
    pixels, boxes = finish(image, boxes, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert tuple(pixels.shape) == (3, new_height, new_width)
    _close(boxes, entry["normalised_cxcywh"], 1e-6)
