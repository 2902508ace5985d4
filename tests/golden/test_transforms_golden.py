"""Sizes and boxes after flip, crop and resize, against the reference values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from lora_detr.data.transforms import (
    EvalTransformConfig,
    crop,
    deformable_size,
    finish,
    flip,
    relation_eval_size,
    relation_size,
    resize,
)
from tests.golden.store import folder, load_json, require

NAME = "transforms"


def _entries(group: str) -> list[Any]:
    return list(load_json(NAME)[group]) if (folder() / f"{NAME}.json").is_file() else []


def _size_name(entry: dict[str, Any]) -> str:
    return f"{entry['image_wh']}-{entry['shorter']}-{entry['longest']}"


@pytest.mark.parametrize("group", ["resize_table", "box_cases", "relation_eval_resize_800_1333"])
def test_values_exist(group: str) -> None:
    require(_entries(group), f"{NAME} {group}")


@pytest.mark.parametrize("entry", _entries("resize_table"), ids=_size_name)
def test_sizes(entry: dict[str, Any]) -> None:
    width, height = entry["image_wh"]
    for rule, column in ((deformable_size, "out_wh_deformable"), (relation_size, "out_wh_relation")):
        expected_width, expected_height = entry[column]
        assert rule(height, width, entry["shorter"], entry["longest"]) == (expected_height, expected_width), column


@pytest.mark.parametrize("entry", _entries("relation_eval_resize_800_1333"), ids=lambda entry: str(entry["image_wh"]))
def test_sizes_of_evaluation_in_the_relation_family(entry: dict[str, Any]) -> None:
    width, height = entry["image_wh"]
    expected_width, expected_height = entry["out_wh"]
    assert relation_eval_size(height, width, 800, 1333) == (expected_height, expected_width)
    # And through the settings.
    image = tv_tensors.Image(torch.zeros((3, height, width), dtype=torch.uint8))
    transform = EvalTransformConfig(rule="relation").build()
    pixels, _, _ = transform(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.Generator())
    assert tuple(pixels.shape) == (3, expected_height, expected_width)


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
    new_height, new_width = deformable_size(image.shape[1], image.shape[2], 480, 1333)
    assert [new_width, new_height] == entry["resized_wh_480_1333"]
    image, boxes = resize(image, boxes, (new_height, new_width))
    _close(boxes, entry["after_flip_crop_resize"], 1e-3)
    pixels, boxes = finish(image, boxes)
    assert tuple(pixels.shape) == (3, new_height, new_width)
    _close(boxes, entry["normalised_cxcywh"], 1e-6)
