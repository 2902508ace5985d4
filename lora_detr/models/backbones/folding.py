"""Frozen batch norm as part of the convolution before it.

Scale and shift are constants, so they can be multiplied into the convolution's weights and added as its bias: a small
product for each step instead of two passes over every map, forward, and one backward. The sums are the same up to
rounding; names of parameters and buffers, and what is trained, stay as they were.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d, pad_same
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)


class FoldedFrozenBatchNorm(nn.Module):
    """What is left of a frozen batch norm: its buffers, and the activation that timm joins to it.

    Args:
        norm: a frozen batch norm of torchvision or timm, whose buffers become this module's.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.eps: float = norm.eps  # type: ignore[assignment]
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what a channel is multiplied by, and what is added then; both [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, normalised: Tensor) -> Tensor:
        """Return the activation of a map that the convolution has normalised already."""
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class FoldedConvolution(nn.Conv2d):
    """A convolution that normalises its result by the frozen batch norm behind it.

    Args:
        convolution: whose parameters and settings become this module's.
        norm: the one behind it.
    """

    def __init__(self, convolution: nn.Conv2d, norm: FoldedFrozenBatchNorm) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            convolution.bias is not None,
            convolution.padding_mode,
            device="meta",
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        self.train(convolution.training)
        self.pads_by_input = isinstance(convolution, Conv2dSame)
        # In a tuple, so that the norm's buffers are not listed a second time under this module.
        self._norm = (norm,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map [B, C, H', W'] of ``x`` [B, C', H, W]."""
        scale, shift = self._norm[0].scale_and_shift()
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias, scale)
        if self.pads_by_input:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]
        normalised: Tensor = self._conv_forward(x, weight, bias)
        return normalised


class _Tracer(fx.Tracer):
    """Looks into everything but convolutions and frozen batch norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, *FROZEN)) or super().is_leaf_module(m, module_qualified_name)


def fold_frozen_norms(network: nn.Module) -> None:
    """Fold each frozen batch norm whose input is a convolution's result, read by nothing else, in place.

    Which those are is read off the graph of the network's forward pass. A network whose graph depends on values is left
    as it is: it computes the same, only slower.

    Args:
        network: perhaps without any frozen batch norm.
    """
    if not any(isinstance(module, FROZEN) for module in network.modules()):
        return
    try:
        graph = _Tracer().trace(network)
    except Exception:  # what tracing raises depends on what the network does with the value that is missing
        return
    for first, second in _pairs(network, graph):
        norm = FoldedFrozenBatchNorm(network.get_submodule(second))
        convolution: Any = network.get_submodule(first)
        network.set_submodule(second, norm)
        network.set_submodule(first, FoldedConvolution(convolution, norm))


def _pairs(network: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the frozen batch norms that alone read them."""
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(network.get_submodule(str(node.target)), FROZEN):
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        names = str(source.target), str(node.target)
        # A subclass may do more than convolve; a module that is called twice would have two norms.
        if type(network.get_submodule(names[0])) in (nn.Conv2d, Conv2dSame) and all(
            calls.count(name) == 1 for name in names
        ):
            found.append(names)
    return found
