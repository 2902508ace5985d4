"""Swin: maps of the stored network, and names, sizes and frozen parameters of the official Swin-L detector."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.models.backbones import TimmConfig
from lora_detr.models.backbones.swin_names import relative_position_index, to_timm, to_torchvision
from lora_detr.models.backbones.timm import TimmBackbone
from tests.golden import store
from tests.unit.models.backbones import small_swin

NAME, LARGE = "swin_tiny_config", "relation_swin_l"
PREFIX, INDEX, WINDOW = "backbone.0.", "relative_position_index", 7


def stored() -> dict[str, Tensor]:
    tensors = store.load_tensors(NAME) if (store.folder() / f"{NAME}.safetensors").is_file() else {}
    return store.require(tensors, "Swin")


def listing() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.folder() / "state_keys" / f"{LARGE}.json").read_text(encoding="utf-8"))
    return content


def large() -> TimmBackbone:
    """Build Swin-L as the official detector has it, without memory."""
    config = TimmConfig(name="swin_large_patch4_window7_224.ms_in22k", weights="none", freeze_stages=1)
    with torch.device("meta"):
        return config.build(load_weights=False)


def test_maps() -> None:
    tensors = stored()
    settings = small_swin.SETTINGS | {"strides": (4, 8, 16, 32)}
    backbone = TimmConfig.model_validate(settings).build(load_weights=False).eval()
    state = {name: value for key, value in tensors.items() if (name := to_timm(key.removeprefix("state/"))) is not None}
    backbone.body.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    with torch.no_grad():
        maps = backbone(tensors["image"])
    assert any(side % 4 for side in tensors["image"].shape[-2:]), "sizes that fit say little"
    for stage, found in enumerate(maps, start=1):
        torch.testing.assert_close(found, tensors[f"stage{stage}"], rtol=0, atol=1e-4)


def test_relative_positions() -> None:
    held = {key: value for key, value in stored().items() if key.endswith(INDEX)}
    expected = relative_position_index(WINDOW)
    for key in store.require(sorted(held), "relative positions"):
        assert torch.equal(held[key].long(), expected), key


def test_names_and_shapes_of_the_official_checkpoint() -> None:
    official = {key.removeprefix(PREFIX): shape for key, shape, _ in listing()["keys"] if key.startswith(PREFIX)}
    indices = {key: official.pop(key) for key in list(official) if key.endswith(INDEX)}
    assert {tuple(shape) for shape in indices.values()} == {tuple(relative_position_index(WINDOW).shape)}
    ours = {name: list(value.shape) for name, value in large().body.state_dict().items()}
    assert {to_timm(name): shape for name, shape in official.items()} == ours
    assert {to_torchvision(name): shape for name, shape in ours.items()} == official


def test_frozen_parameters_and_sizes() -> None:
    backbone = large()
    assert (backbone.strides, backbone.channels) == ((8, 16, 32), (384, 768, 1536))
    frozen = {to_torchvision(name) for name, value in backbone.body.named_parameters() if not value.requires_grad}
    assert frozen == {name.removeprefix(PREFIX) for name in listing()["frozen_parameters"]}
    variant = store.load_json("param_counts")["variants"][LARGE]
    trained = sum(value.numel() for value in backbone.parameters() if value.requires_grad)
    assert trained == variant["trainable_by_module"][PREFIX.rstrip(".")]


@pytest.mark.parametrize("name", ["swin_large_patch4_window7_224", "swin_large_patch4_window12_384.ms_in22k"])
def test_a_name_brings_its_window(name: str) -> None:
    with torch.device("meta"):
        body = TimmConfig(name=name, weights="none").build(load_weights=False).body
    side = 12 if "window12" in name else 7
    tables = {tuple(value.shape) for key, value in body.state_dict().items() if key.endswith("bias_table")}
    assert tables == {((2 * side - 1) ** 2, heads) for heads in (6, 12, 24, 48)}
