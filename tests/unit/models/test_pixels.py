"""Pixels are normalised by the detector to the bits that torchvision gives, and leave no trace in its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lora_detr.data.loader import collate
from lora_detr.errors import ConfigError
from lora_detr.models import DeformableDetrConfig, RelationDetrConfig
from lora_detr.models.backbones import ResNetConfig
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.structures import Images, Target

STATISTICS = [
    ResNetConfig().input_statistics,
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.1307, 0.0, 1.0), (0.3081, 1.0, 1e-3)),
]
EMPTY = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0, (1, 1))


def every_value() -> Tensor:
    """Return an image [3, 16, 16] that has each of the 256 values in each channel."""
    return torch.stack([torch.arange(256, dtype=torch.uint8).roll(shift).view(16, 16) for shift in (0, 85, 170)])


def batch(dtype: torch.dtype = torch.uint8) -> Images:
    noise = torch.randint(256, (3, 19, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return collate([(image.to(dtype), EMPTY) for image in (every_value(), noise)], 4).images


@pytest.mark.parametrize(("mean", "std"), STATISTICS)
def test_bits_are_those_of_torchvision_before_padding(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = batch()
    assert images.pixels.dtype == torch.uint8
    found = PixelNormalisation(mean, std)(images)
    expected = torch.zeros(2, 3, 20, 16)
    for i, (height, width) in enumerate(images.sizes.tolist()):
        alone = F.to_dtype(images.pixels[i, :, :height, :width], torch.float32, scale=True)
        expected[i, :, :height, :width] = F.normalize(alone, list(mean), list(std))
    assert found.dtype == torch.float32
    # As integers, so that -0.0 is not 0.0.
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_the_batch_stays_as_it_is() -> None:
    images = batch()
    before = images.pixels.clone()
    PixelNormalisation(*STATISTICS[0])(images)
    assert torch.equal(images.pixels, before)


def test_float_pixels_pass() -> None:
    images = batch(torch.float32)
    assert PixelNormalisation(*STATISTICS[0])(images) is images.pixels


def test_statistics_follow_the_module_and_are_no_weights() -> None:
    normalisation = PixelNormalisation(*STATISTICS[0])
    assert normalisation.state_dict() == {}
    assert list(normalisation.parameters()) == []
    normalisation.to("meta")
    assert (normalisation.mean.device.type, normalisation.std.device.type) == ("meta", "meta")
    assert PixelNormalisation(*STATISTICS[0]).double()(batch()).dtype == torch.float64


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.std: expected numbers other than 0, found \[1\.0, 0\.0"):
        PixelNormalisation((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))


@pytest.mark.parametrize("kind", [DeformableDetrConfig, RelationDetrConfig])
def test_a_detector_normalises_as_its_backbone_says(
    kind: type[DeformableDetrConfig] | type[RelationDetrConfig],
) -> None:
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    backbone = {"kind": "timm", "name": "test_efficientnet", "strides": (16, 32), "weights": "none"}
    sizes = {"hidden_dim": 32, "heads": 4, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 4}
    config = kind.model_validate({**sizes, "backbone": {**backbone, "mean": mean, "std": std}, "hybrid": None})
    detector = config.build(2, load_weights=False).eval()
    images = collate([(every_value().repeat(1, 4, 4), EMPTY), (every_value().repeat(1, 3, 4), EMPTY)]).images
    normalised = Images(PixelNormalisation(mean, std)(images), images.padding, images.sizes)
    with torch.no_grad():
        found, expected = detector(images).prediction, detector(normalised).prediction
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)
    assert not any("normalisation" in name for name in detector.state_dict())
