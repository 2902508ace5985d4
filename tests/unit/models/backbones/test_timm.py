"""Settings of timm's networks: what is frozen, stochastic depth, and names with the tag of their weights."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.models.backbones import TimmConfig
from lora_detr.models.backbones.timm import TimmBackbone
from tests.unit.models.backbones import small_swin

TAGGED = "swin_tiny_patch4_window7_224.ms_in22k"


def built(name: str, **changes: Any) -> TimmBackbone:
    return TimmConfig.model_validate({"name": name, "weights": "none"} | changes).build(load_weights=False)


def test_swin_drops_what_fills_no_patch_and_then_rounds_up() -> None:
    with torch.no_grad():
        maps = built(small_swin.NAME)(torch.randn(1, 3, 65, 103))
    assert [tuple(item.shape[-2:]) for item in maps] == [(8, 13), (4, 7), (2, 4)]


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("test_resnet", 1, {"conv1", "bn1", "layer1"}),
        ("test_convnext", 1, {"stem_0", "stem_1", "stages_0"}),
        ("test_efficientnet", 0, set()),
        ("test_efficientnet", 1, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
        (small_swin.NAME, 1, {"patch_embed", "layers_0", "layers_1.downsample"}),
        (small_swin.NAME, 4, {"patch_embed", "layers_0", "layers_1", "layers_2", "layers_3"}),
    ],
)
def test_first_stages_are_not_trained(name: str, stages: int, frozen: set[str]) -> None:
    parts = {f"{part}." for part in frozen}
    parameters = dict(built(name, norm="group", freeze_stages=stages).body.named_parameters())
    for key, parameter in parameters.items():
        assert parameter.requires_grad != key.startswith(tuple(parts)), key
    assert all(any(key.startswith(part) for key in parameters) for part in parts)


@pytest.mark.parametrize(("stages", "strides"), [(5, (8, 16, 32)), (3, (8,))])
def test_stages_that_do_not_exist_cannot_be_frozen(stages: int, strides: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"freeze_stages is {stages}, but {small_swin.NAME}"):
        built(small_swin.NAME, freeze_stages=stages, strides=strides)


def drop_rates(backbone: TimmBackbone) -> list[float]:
    return [module.drop_prob for module in backbone.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(("drop_path", "highest"), [(0.35, 0.35), (None, 0.1)])
def test_stochastic_depth_rises_from_block_to_block(drop_path: float | None, highest: float) -> None:
    # Twice in each of the eight blocks, and not in the first, whose rate is 0.
    expected = [highest * block / 7 for block in range(1, 8) for _ in range(2)]
    assert drop_rates(built(small_swin.NAME, drop_path=drop_path)) == pytest.approx(expected)


def test_networks_without_stochastic_depth() -> None:
    assert drop_rates(built(small_swin.NAME, drop_path=0.0)) == []
    assert drop_rates(built("test_efficientnet")) == []
    with pytest.raises(ConfigError, match="vgg11 has no stochastic depth"):
        built("vgg11", drop_path=0.1)


def test_an_unknown_tag() -> None:
    with pytest.raises(ConfigError, match=r"no weights 'ms_in22' of swin_tiny.*did you mean '.*\.ms_in22k'") as caught:
        TimmConfig(name=TAGGED[:-1]).resolved().build(load_weights=False)
    assert TAGGED in caught.value.remedy


def test_the_file_to_get_is_that_of_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def local_only(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise URLError("no network")
        return create(name, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr("timm.create_model", local_only)
    with pytest.raises(CheckpointError, match="no network") as caught:
        TimmConfig(name=TAGGED).build(load_weights=True)
    assert TAGGED in caught.value.message
    assert f"get https://huggingface.co/timm/{TAGGED}/resolve/main/model.safetensors " in caught.value.remedy


def test_a_network_without_batch_norm_ignores_the_choice_of_it() -> None:
    config = TimmConfig.model_validate(small_swin.SETTINGS)
    frozen, group = (config.model_copy(update={"norm": norm}).build(False).body for norm in ("frozen-batch", "group"))
    assert [type(module) for module in frozen.modules()] == [type(module) for module in group.modules()]
    assert all(parameter.requires_grad for parameter in frozen.parameters())
    assert config.without_weights().build(False).body.state_dict().keys() == frozen.state_dict().keys()
