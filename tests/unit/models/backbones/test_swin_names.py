"""Names of Swin tensors elsewhere, and files of weights that use them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_detr.errors import CheckpointError
from lora_detr.models.backbones import TimmConfig
from lora_detr.models.backbones.swin_names import as_timm, relative_position_index, to_timm, to_torchvision
from tests.unit.models.backbones import small_swin

PAIRS = [
    ("features.0.0.weight", "patch_embed.proj.weight"),
    ("features.0.2.bias", "patch_embed.norm.bias"),
    ("features.1.0.norm1.weight", "layers_0.blocks.0.norm1.weight"),
    ("features.2.reduction.weight", "layers_1.downsample.reduction.weight"),
    ("features.5.17.mlp.0.weight", "layers_2.blocks.17.mlp.fc1.weight"),
    ("features.5.17.mlp.3.bias", "layers_2.blocks.17.mlp.fc2.bias"),
    ("features.6.norm.bias", "layers_3.downsample.norm.bias"),
    ("features.7.1.attn.qkv.bias", "layers_3.blocks.1.attn.qkv.bias"),
    ("features.7.1.attn.relative_position_bias_table", "layers_3.blocks.1.attn.relative_position_bias_table"),
]


@pytest.mark.parametrize(("official", "ours"), PAIRS)
def test_names(official: str, ours: str) -> None:
    assert to_timm(official) == ours
    assert to_torchvision(ours) == official


@pytest.mark.parametrize(
    "name",
    [
        "features.1.0.attn.relative_position_index",
        "norm.weight",
        "head.bias",
        "features.0.norm.weight",
        "layer1.0.bn1.bias",
    ],
)
def test_names_without_place(name: str) -> None:
    assert to_timm(name) is None
    assert to_torchvision(name) is None


@pytest.mark.parametrize("name", ["layers_0.downsample.norm.weight", "stages_0.blocks.0.norm1.weight", "norm.weight"])
def test_names_that_torchvision_lacks(name: str) -> None:
    assert to_torchvision(name) is None


def test_every_tensor_of_a_network_has_its_name() -> None:
    network = small_swin.official()
    ours = TimmConfig.model_validate(small_swin.SETTINGS).build(load_weights=False).body.state_dict()
    theirs = {
        name: value
        for name, value in network.state_dict().items()
        if name.startswith("features.") and not name.endswith("relative_position_index")
    }
    assert {to_timm(name): value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in ours.items()
    }
    assert {to_torchvision(name) for name in ours} == set(theirs)


def test_relative_position_index_is_torchvisions() -> None:
    stored = small_swin.official().state_dict()["features.1.0.attn.relative_position_index"]
    found = relative_position_index(small_swin.WINDOW)
    assert found.dtype == stored.dtype == torch.int64
    assert torch.equal(found, stored)
    assert relative_position_index(1).tolist() == [0]
    assert relative_position_index(12).max() == 23 * 23 - 1


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name timm's tensors as Microsoft's release does, with the buffers and the classifier that it holds."""
    renamed = {
        re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match.group(1)) - 1}.downsample", name): value
        for name, value in state.items()
    }
    renamed = {name.replace("head.fc.", "head."): value for name, value in renamed.items()}
    window = small_swin.WINDOW**2
    return renamed | {
        "layers.0.blocks.0.attn.relative_position_index": relative_position_index(small_swin.WINDOW).view(
            window, window
        ),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, window, window),
    }


@pytest.mark.parametrize("naming", ["timm", "timm-features", "microsoft", "torchvision"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_local_file(naming: str, suffix: str, tmp_path: Path) -> None:
    network = timm.create_model(small_swin.NAME, num_classes=5)
    state = {name: torch.rand_like(value) for name, value in network.state_dict().items()}
    expected = {re.sub(r"^layers\.(\d)", r"layers_\1", name): value for name, value in state.items()}
    held = {
        "timm": state,
        "timm-features": expected,
        "microsoft": released(state),
        "torchvision": {to_torchvision(name) or name: value for name, value in expected.items()},
    }[naming]
    if naming == "torchvision":
        held["features.1.0.attn.relative_position_index"] = relative_position_index(small_swin.WINDOW)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save({"model": held} if naming == "microsoft" else held, path)
    config = TimmConfig.model_validate(small_swin.SETTINGS | {"weights": str(path)})
    loaded = config.build(load_weights=True).body.state_dict()
    assert len(loaded) == len(expected) - 4  # final norm and classifier
    for name, value in loaded.items():
        assert torch.equal(value, expected[name]), name


def test_weights_of_another_window_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(small_swin.NAME, window_size=4).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"relative_position_bias_table is \(49, 1\), expected \(169, 1\)"):
        TimmConfig.model_validate(small_swin.SETTINGS | {"weights": str(path)}).build(load_weights=True)


def test_files_of_other_networks_keep_their_names() -> None:
    state = {"layers.0.weight": torch.zeros(1), "layers.1.downsample.proj.weight": torch.zeros(1)}
    assert as_timm(state) == state
