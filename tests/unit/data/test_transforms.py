"""Geometry of the transforms, and the random draws of the training recipe."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision import tv_tensors

from lora_detr.data.transforms import (
    EvalTransformConfig,
    SizeRule,
    TrainTransformConfig,
    crop,
    deformable_size,
    drop_small,
    flip,
    relation_eval_size,
    relation_size,
    resize,
)

RULES = (deformable_size, relation_size, relation_eval_size)


def _image(height: int, width: int) -> tv_tensors.Image:
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def _marked(height: int, width: int, boxes: Tensor) -> tv_tensors.Image:
    """Return a black image on which every box is white."""
    pixels = torch.zeros((3, height, width), dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes.int().tolist():
        pixels[:, y1:y2, x1:x2] = 255
    return tv_tensors.Image(pixels)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2000)])
@pytest.mark.parametrize("rule", ["deformable", "relation"])
def test_extreme_sizes_stay_positive_and_bounded_d26(
    rule: Literal["deformable", "relation"], size: tuple[int, int]
) -> None:
    for compute in RULES:
        height, width = compute(*size, 800, 1333)
        assert min(height, width) >= 1
        assert max(height, width) <= 1333
    for config in (TrainTransformConfig(crop_probability=1.0, rule=rule), EvalTransformConfig(rule=rule)):
        boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        pixels, boxes, _ = config.build()(_image(*size), boxes, torch.tensor([0]), _generator())
        assert max(pixels.shape) <= 1333
        assert pixels.dtype == torch.uint8
        assert torch.allclose(boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


@pytest.mark.parametrize(("shorter", "longest"), [(800, 1333), (480, 1333), (256, None), (64, 64), (333, 500)])
@pytest.mark.parametrize("compute", RULES)
def test_sizes_respect_the_limit(compute: SizeRule, shorter: int, longest: int | None) -> None:
    random = _generator()
    for height, width in torch.randint(20, 2000, (200, 2), generator=random).tolist():
        small, large = sorted(compute(height, width, shorter, longest))
        assert longest is None or large <= longest + large / small / 2
        assert small <= max(shorter, min(height, width))
        assert abs(large / small - max(height, width) / min(height, width)) < 2 * large / small / small


@pytest.mark.parametrize("longest", [1333, None])
def test_sizes_of_the_relation_family_are_rounded_down_and_depend_on_the_precision(longest: int | None) -> None:
    apart = 0
    for height, width in torch.randint(200, 2000, (300, 2), generator=_generator()).tolist():
        ratio = Fraction(800, min(height, width))
        if longest is not None:
            ratio = min(ratio, Fraction(longest, max(height, width)))
        double, single = (rule(height, width, 800, longest) for rule in (relation_size, relation_eval_size))
        for side, first, second in zip((height, width), double, single, strict=True):
            assert side * ratio - first < 1 + 1e-6
            assert first <= side * ratio
            assert abs(first - second) <= 1
        apart += double != single
    assert 0 < apart < 150


# Of the three rules, float64 alone rounds the first image in its way, and float32 alone the second.
@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (EvalTransformConfig(size=480), (427, 640), (480, 719)),
        (EvalTransformConfig(size=49), (61, 90), (49, 72)),
        (EvalTransformConfig(size=480, rule="relation"), (427, 640), (480, 719)),
        (EvalTransformConfig(size=49, rule="relation"), (61, 90), (48, 72)),
        (TrainTransformConfig(crop_probability=0.0, scales=(480,)), (427, 640), (480, 719)),
        (TrainTransformConfig(crop_probability=0.0, scales=(480,), rule="relation"), (427, 640), (479, 719)),
        (TrainTransformConfig(crop_probability=0.0, scales=(49,), rule="relation"), (61, 90), (49, 72)),
    ],
    ids=str,
)
def test_each_transform_rounds_by_the_rule_of_its_settings(
    config: EvalTransformConfig | TrainTransformConfig, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    empty, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    pixels, _, _ = config.build()(_image(*size), empty, labels, _generator())
    assert tuple(pixels.shape) == (3, *expected)


def test_the_rule_holds_before_a_crop_too() -> None:
    empty, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    # The crop takes all of the enlarged image, and the last resize finds it as it should be.
    config = TrainTransformConfig(
        crop_probability=1.0, crop_scales=(480,), crop_range=(999, 999), scales=(479,), max_size=None, rule="relation"
    )
    pixels, _, _ = config.build()(_image(427, 640), empty, labels, _generator())
    assert tuple(pixels.shape) == (3, 479, 719)


@pytest.mark.parametrize(("min_box", "kept"), [(0.0, [0, 1, 2, 3]), (1.0, [1, 3]), (4.0, [3])])
def test_boxes_that_are_too_small_after_the_last_resize_are_dropped(min_box: float, kept: list[int]) -> None:
    # Half as large afterwards: the first is 0.9 pixels wide, the third 0.75 high, the second exactly 1 by 2.
    boxes = torch.tensor([[10, 10, 11.8, 30], [20, 20, 22, 24], [30, 5, 50, 6.5], [40, 40, 60, 60]])
    config = TrainTransformConfig(
        flip_probability=0.0, crop_probability=0.0, scales=(40,), max_size=None, min_box=min_box
    )
    _, prepared, labels = config.build()(_image(80, 100), boxes, torch.arange(4), _generator())
    assert labels.tolist() == kept
    assert torch.allclose(prepared[:, 2:] * torch.tensor([50.0, 40.0]), (boxes[:, 2:] - boxes[:, :2])[kept] / 2)


def test_no_box_need_be_left() -> None:
    boxes, labels = drop_small(torch.tensor([[0.0, 0.0, 0.5, 9.0]]), torch.tensor([3]), 1.0)
    assert (tuple(boxes.shape), tuple(labels.shape)) == ((0, 4), (0,))


def test_image_and_boxes_move_together() -> None:
    boxes = torch.tensor([[8.0, 4.0, 24.0, 20.0]])
    image = _marked(40, 60, boxes)
    image2, boxes2 = flip(image, boxes)
    assert boxes2.tolist() == [[36.0, 4.0, 52.0, 20.0]]
    image3, boxes3, _ = crop(image2, boxes2, torch.tensor([0]), (2, 30, 30, 28))
    assert boxes3.tolist() == [[6.0, 2.0, 22.0, 18.0]]
    image4, boxes4 = resize(image3, boxes3, (60, 56))
    assert boxes4.tolist() == [[12.0, 4.0, 44.0, 36.0]]
    for image, box in ((image2, boxes2), (image3, boxes3), (image4, boxes4)):
        expected = _marked(image.shape[1], image.shape[2], box)
        assert (image.float() - expected.float()).abs().mean() < 8
    assert type(boxes4) is Tensor


def test_crop_keeps_boxes_with_a_width_and_a_height_only() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [9, 0, 12, 30], [15, 15, 50, 50]])
    _, kept, labels = crop(_image(60, 60), boxes, torch.arange(4), (10, 10, 10, 10))
    assert labels.tolist() == [1, 2, 3]
    assert kept.tolist() == [[0, 0, 10, 10], [0, 0, 2, 10], [5, 5, 10, 10]]


def test_evaluation_draws_nothing_and_keeps_the_pixels() -> None:
    image = _image(60, 80)
    generator = _generator()
    state = generator.get_state()
    pixels, boxes, labels = EvalTransformConfig(size=60, max_size=None).build()(
        image, torch.tensor([[8.0, 6.0, 24.0, 18.0]]), torch.tensor([3]), generator
    )
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(pixels, image)
    assert torch.allclose(boxes, torch.tensor([[0.2, 0.2, 0.2, 0.2]]))
    assert labels.tolist() == [3]
    assert (type(pixels), type(boxes), pixels.dtype) == (Tensor, Tensor, torch.uint8)


def test_images_without_objects() -> None:
    empty, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    for probability in (0.0, 1.0):
        config = TrainTransformConfig(flip_probability=1.0, crop_probability=probability, scales=(64,), max_size=100)
        _, boxes, kept = config.build()(_image(50, 60), empty, labels, _generator())
        assert (tuple(boxes.shape), tuple(kept.shape)) == ((0, 4), (0,))


def test_same_generator_same_result() -> None:
    transform = TrainTransformConfig(
        scales=(48, 64, 80), max_size=120, crop_scales=(60, 90), crop_range=(30, 50)
    ).build()
    image, boxes, labels = _image(70, 90), torch.tensor([[5.0, 5.0, 60.0, 60.0]]), torch.tensor([1])
    shapes = set()
    for seed in range(12):
        first = transform(image, boxes.clone(), labels, _generator(seed))
        again = transform(image, boxes.clone(), labels, _generator(seed))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        shapes.add(tuple(first[0].shape))
    assert len(shapes) > 3
    assert boxes.tolist() == [[5.0, 5.0, 60.0, 60.0]]


def test_crop_probability_zero_never_crops() -> None:
    transform = TrainTransformConfig(crop_probability=0.0, scales=(64,), max_size=None).build()
    for seed in range(20):
        pixels, boxes, _ = transform(
            _image(64, 96), torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([0]), _generator(seed)
        )
        assert tuple(pixels.shape) == (3, 64, 96)
        assert torch.allclose(boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_crops_lie_in_the_range() -> None:
    transform = TrainTransformConfig(
        flip_probability=0.0, crop_probability=1.0, crop_scales=(400,), scales=(1,), max_size=None
    ).build()
    for seed in range(50):
        top, left, height, width = transform._window(torch.zeros((3, 500, 390)), _generator(seed))
        assert 384 <= height <= 500
        assert 384 <= width <= 390
        assert 0 <= top <= 500 - height
        assert 0 <= left <= 390 - width
        assert transform._window(torch.zeros((3, 20, 10)), _generator(seed)) == (0, 0, 20, 10)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_square_ignores_the_aspect_ratio(probability: float) -> None:
    boxes, labels = torch.tensor([[0.0, 0.0, 30.0, 20.0]]), torch.tensor([0])
    train = TrainTransformConfig(square=True, scales=(32,), crop_probability=probability, crop_scales=(50,))
    for config in (train, EvalTransformConfig(square=True, size=32)):
        pixels, _, _ = config.build()(_image(40, 90), boxes, labels, _generator())
        assert tuple(pixels.shape) == (3, 32, 32)


@pytest.mark.parametrize(
    "values",
    [
        {"scales": []},
        {"scales": [0]},
        {"flip_probability": 1.5},
        {"crop_range": [9, 8]},
        {"unknown": 1},
        {"rule": "detr"},
    ],
)
def test_config_refuses(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainTransformConfig.model_validate(values)
