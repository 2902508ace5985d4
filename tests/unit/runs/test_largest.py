"""No image of a run becomes larger than what its settings and the annotation file say."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from lora_detr.data.transforms import EvalTransformConfig, TrainTransformConfig
from lora_detr.runs.rehearsal import largest_size

COCO = {(480, 640), (640, 427), (375, 500)}


def train(**changes: object) -> TrainTransformConfig:
    return TrainTransformConfig.model_validate(changes)


@pytest.mark.parametrize(
    ("config", "batch_size", "divisor", "expected"),
    [
        # The tall image is scaled to 1199 x 800, the widest to 800 x 1066.
        (train(crop_probability=0), 2, 1, (1199, 1066)),
        (train(crop_probability=0), 1, 1, (1199, 800)),
        (train(crop_probability=0), 2, 32, (1216, 1088)),
        # A crop of 384 x 600 pixels is as elongated as no image: 800 x 1250.
        (train(), 2, 1, (1250, 1250)),
        (train(max_size=1000), 2, 1, (1000, 1000)),
        (train(scales=[256, 320], square=True), 2, 1, (320, 320)),
        (EvalTransformConfig(), 2, 1, (1199, 1066)),
        (EvalTransformConfig(size=256, square=True), 4, 1, (256, 256)),
    ],
)
def test_size_of_coco_images(
    config: TrainTransformConfig | EvalTransformConfig, batch_size: int, divisor: int, expected: tuple[int, int]
) -> None:
    assert largest_size(config.build(), COCO, batch_size, divisor) == expected


@pytest.mark.parametrize("rule", ["deformable", "relation"])
def test_what_is_drawn_stays_below_and_comes_close(rule: str) -> None:
    config = train(
        scales=[40, 64], max_size=96, crop_scales=[40, 60], crop_range=[30, 50], rule=rule, flip_probability=0.0
    )
    transform = config.build()
    stored = [(30, 44), (50, 30), (40, 40), (20, 70)]
    height, width = largest_size(transform, stored, 2, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for size in stored * 40:
        image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
        pixels, _, _ = transform(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), generator)
        drawn.append(tuple(pixels.shape[-2:]))
    tallest, widest = (max(sides) for sides in zip(*drawn, strict=True))
    assert (tallest <= height, widest <= width) == (True, True)
    assert (tallest > 0.9 * height, widest > 0.9 * width) == (True, True)
