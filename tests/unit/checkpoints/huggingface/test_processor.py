"""What is written of the preparation of images, ``AutoImageProcessor`` reads, and prepares the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

pytest.importorskip("transformers")

import transformers

from lora_detr.checkpoints.huggingface.writing import write_processor
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.models.huggingface import FAMILIES
from lora_detr.models.huggingface.processor import Preparation, prepare, read_processor
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.structures import Images
from tests import huggingface_models

OTHER = Preparation(64, None, False, 1, (0.1, 0.2, 0.3), (0.5, 0.4, 0.3))
STALE = {"size": 90, "max_size": 95, "pad_size": {"height": 400, "width": 400}, "do_rescale": None, "resample": 2}


def of_family(kind: str) -> Preparation:
    """Return what a family's own weights were trained with."""
    return prepare(None, FAMILIES[kind], huggingface_models.CONFIGS[kind]().to_dict(), "folder")


@pytest.mark.parametrize("kept", [{}, STALE], ids=["nothing kept", "stale values kept"])
@pytest.mark.parametrize(
    ("kind", "preparation"),
    [
        *((kind, None) for kind in huggingface_models.CONFIGS),
        ("deformable_detr", OTHER),
        ("deformable_detr", Preparation(96, 100, False, 1, OTHER.mean, OTHER.std)),
        ("deformable_detr", Preparation(48, None, True, 1, OTHER.mean, OTHER.std)),
        ("rt_detr", Preparation(96, None, True, 32, OTHER.mean, OTHER.std)),
    ],
)
def test_their_processor_prepares_images_as_ours(
    kind: str, preparation: Preparation | None, kept: dict[str, Any], tmp_path: Path
) -> None:
    wanted = preparation or of_family(kind)
    transform = EvalTransformConfig(size=wanted.size, max_size=wanted.max_size, square=wanted.square)
    how = DeploymentConfig.model_construct(
        transform=transform, size_divisor=wanted.divisor, mean=wanted.mean, std=wanted.std
    )
    write_processor(tmp_path, how, kind, kept)
    image = torch.randint(256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    pixels = transform.build()(tv_tensors.Image(image), *nothing, torch.Generator())[0][None]
    images = Images(pixels, torch.zeros(1, *pixels.shape[2:], dtype=torch.bool), torch.tensor([pixels.shape[2:]]))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    found = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, PixelNormalisation(wanted.mean, wanted.std)(images), rtol=0, atol=1e-5)
    # And read again it is the same; the note is on what had no file.
    again = prepare(
        read_processor(str(tmp_path)), FAMILIES[kind], huggingface_models.CONFIGS[kind]().to_dict(), "folder"
    )
    assert again == Preparation(*(getattr(wanted, key) for key in Preparation.__match_args__[:-1]))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_pad"] is not wanted.square
