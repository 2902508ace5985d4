"""Swin blocks for maps of any size: equal to torchvision's everywhere, and to timm's where nothing is padded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lora_detr.models.backbones import TimmConfig
from lora_detr.models.backbones.shifted_windows import (
    SEPARATION,
    ShiftedWindowBlock,
    accept_any_size,
    partition,
    reverse,
    shift_mask,
)
from lora_detr.models.backbones.swin_names import to_timm
from lora_detr.models.backbones.timm import TimmBackbone
from tests.unit.models.backbones import small_swin

# Multiples of nothing; one window in one axis only; less than a window; a single patch; nothing padded at any stage.
SIZES = [(75, 98), (29, 250), (250, 29), (20, 31), (7, 4), (224, 224)]
V2: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 6), "features_only": True}


def backbone() -> TimmBackbone:
    return TimmConfig.model_validate(small_swin.SETTINGS | {"strides": (4, 8, 16, 32)}).build(load_weights=False)


def scrambled(body: nn.Module) -> nn.Module:
    """Give every parameter random values: Swin v2 starts with blocks that do nothing."""
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.3)
    return body.eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torchvision(size: tuple[int, int]) -> None:
    network, ours = small_swin.official(), backbone().eval()
    named = {to_timm(name): value for name, value in network.state_dict().items()}
    ours.body.load_state_dict({name: value for name, value in named.items() if name is not None})
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = ours(pixels)
    for found, expected in zip(maps, small_swin.official_maps(network, pixels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [(small_swin.NAME, {"features_only": True}, 224), ("swinv2_tiny_window8_256", V2, 256)],
    ids=["swin", "swin-v2"],
)
def test_equals_timm_where_nothing_is_padded(name: str, options: dict[str, Any], side: int) -> None:
    theirs = scrambled(timm.create_model(name, **options))
    ours = copy.deepcopy(theirs)
    accept_any_size(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        for found, expected in zip(ours(pixels), theirs(pixels), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_swin_v2_takes_any_size() -> None:
    body = scrambled(timm.create_model("swinv2_tiny_window8_256", **V2))
    accept_any_size(body)
    with torch.no_grad():
        assert [tuple(item.shape[1:3]) for item in body(torch.randn(1, 3, 75, 98))] == [
            (18, 24),
            (9, 12),
            (5, 6),
            (3, 3),
        ]


def test_sizes_may_change_from_image_to_image() -> None:
    ours = backbone().train()
    names = set(ours.state_dict())
    for size in ((75, 98), (40, 131)):
        sum(item.square().mean() for item in ours(torch.randn(2, 3, *size))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())
    assert set(ours.state_dict()) == names
    assert not [name for name in names if "index" in name or "mask" in name]
    twin = copy.deepcopy(ours).eval()
    fresh = backbone().eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    pixels = torch.randn(1, 3, 33, 61)
    with torch.no_grad():
        for one, other in zip(twin(pixels), fresh(pixels), strict=True):
            assert torch.equal(one, other)


def test_runs_in_bfloat16() -> None:
    ours = backbone().train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = ours(torch.randn(1, 3, 75, 98))
    sum(item.float().square().mean() for item in maps).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in ours.parameters() if parameter.grad is not None)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 75, 98)
        exact = ours.eval()(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = ours(pixels)
    for found, expected in zip(rounded, exact, strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_other_networks_stay_as_they_are() -> None:
    body = timm.create_model("test_vit", num_classes=0)
    before = {name: type(module) for name, module in body.named_modules()}
    size = body.patch_embed.img_size
    accept_any_size(body)
    assert {name: type(module) for name, module in body.named_modules()} == before
    assert body.patch_embed.img_size == size is not None
    assert not any(isinstance(module, ShiftedWindowBlock) for module in body.modules())


@pytest.mark.parametrize("window", [(2, 3), (6, 4), (1, 1)])
def test_windows_hold_neighbours_and_come_together_again(window: tuple[int, int]) -> None:
    hidden = torch.arange(2 * 6 * 12 * 5).reshape(2, 6, 12, 5)
    windows = partition(hidden, window)
    assert windows.shape == (2 * 72 // (window[0] * window[1]), window[0] * window[1], 5)
    assert torch.equal(windows[0], hidden[0, : window[0], : window[1]].reshape(-1, 5))
    assert torch.equal(reverse(windows, hidden, window), hidden)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((6, 8), (3, 4), (1, 2)), ((4, 9), (2, 3), (1, 1)), ((3, 8), (3, 4), (0, 2)), ((6, 4), (3, 4), (1, 0))],
)
def test_positions_are_separated_unless_they_were_as_near_before(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> None:
    places = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"), dim=-1)[None]
    now = partition(places, window)
    before = partition(places.roll((-shift[0], -shift[1]), dims=(1, 2)), window)

    def distances(position: Tensor) -> Tensor:
        return position[:, :, None] - position[:, None]

    expected = (distances(now) != distances(before)).any(dim=-1).float() * SEPARATION
    found = shift_mask(size, window, shift, torch.zeros(1))
    assert expected.any()
    assert torch.equal(found, expected)
