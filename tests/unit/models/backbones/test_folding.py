"""A folded frozen batch norm computes what it did, and nobody outside sees a difference."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lora_detr.models.backbones import resnet, timm
from lora_detr.models.backbones.folding import FROZEN, FoldedConvolution, FoldedFrozenBatchNorm, fold_frozen_norms
from lora_detr.models.backbones.resnet import ResNet
from lora_detr.models.backbones.timm import TimmBackbone

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: ResNet("resnet18", True, True, channels_last=True), 0),
    "padding that follows the input": (lambda: TimmBackbone("tf_efficientnet_lite0", (16, 32), True, False), 0),
    "gates": (lambda: TimmBackbone("mobilenetv3_small_050", (8, 32), True, False), 0),
    # A block's first norm reads a sum; only those between its convolutions can be folded.
    "norm first": (lambda: TimmBackbone("resnetv2_50", (8, 16), True, False), 13),
}


def with_statistics(network: nn.Module) -> nn.Module:
    """Give every frozen norm statistics and affine terms of its own, and compute in float64."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (*FROZEN, FoldedFrozenBatchNorm)):
            for name, buffer in module.named_buffers(recurse=False):
                positive = name in ("weight", "running_var")
                noise = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(noise + 0.5 if positive else 0.4 * noise - 0.2)
    return network.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_give_the_maps_and_gradients_of_those_that_are_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, left = NETWORKS[name]
    torch.manual_seed(0)
    folded = with_statistics(build())
    with monkeypatch.context() as patch:
        patch.setattr(resnet, "fold_frozen_norms", lambda network: None)
        patch.setattr(timm, "fold_frozen_norms", lambda network: None)
        torch.manual_seed(0)
        plain = with_statistics(build())

    assert not any(isinstance(module, FoldedConvolution) for module in plain.modules())
    assert any(isinstance(module, FoldedConvolution) for module in folded.modules())
    assert sum(isinstance(module, FROZEN) for module in folded.modules()) == left
    assert [key for key, _ in folded.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert {key: value.tolist() for key, value in folded.state_dict().items() if value.ndim == 1} == {
        key: value.tolist() for key, value in plain.state_dict().items() if value.ndim == 1
    }
    assert [key for key, value in folded.named_parameters() if value.requires_grad] == [
        key for key, value in plain.named_parameters() if value.requires_grad
    ]

    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for network in (folded, plain):
        maps = network(pixels)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(sum(item.square().mean() for item in maps), trained, allow_unused=True)
        results.append([*maps, *(item for item in gradients if item is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


def test_a_copy_normalises_by_its_own_statistics() -> None:
    network = ResNet("resnet18", True, False, channels_last=False)
    other = copy.deepcopy(network)
    pixels = torch.randn(1, 3, 64, 64)
    before = network(pixels)[0]
    for module in other.modules():
        if isinstance(module, FoldedFrozenBatchNorm):
            module.bias.fill_(1.0)

    assert network(pixels)[0].equal(before)
    assert not other(pixels)[0].equal(before)


class Twice(nn.Module):
    """A convolution whose result is read twice, or that is run twice.

    Args:
        how: ``shared`` or ``repeated``.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = FrozenBatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.convolution(x)
        normalised: Tensor = self.norm(convolved)
        return normalised + convolved if self.how == "shared" else self.convolution(normalised)


class Undecided(nn.Module):
    """A network whose graph depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3)
        self.norm = FrozenBatchNormAct2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.convolution(x)) if x.sum() > 0 else x
        return result


@pytest.mark.parametrize("network", [Twice("shared"), Twice("repeated"), Undecided()], ids=lambda one: repr(one)[:9])
def test_what_cannot_be_folded_is_left_alone(network: nn.Module) -> None:
    network = with_statistics(network)
    pixels = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    before = network(pixels)

    fold_frozen_norms(network)

    assert not any(isinstance(module, FoldedConvolution) for module in network.modules())
    assert network(pixels).equal(before)


def test_a_bias_of_the_convolution_is_scaled_too() -> None:
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), FrozenBatchNormAct2d(4)))
    pixels = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    before = network(pixels)

    fold_frozen_norms(network)

    assert isinstance(network[0], FoldedConvolution)  # type: ignore[index]
    torch.testing.assert_close(network(pixels), before)
