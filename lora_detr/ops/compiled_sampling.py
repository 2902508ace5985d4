"""Deformable sampling by compiled packages that may be installed; none is required.

Each takes and gives what ``ops.deform_attn.deformable_sampling`` documents, all tensors float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_detr.ops.sampling import level_starts

# Where the kernels of Hugging Face's community lie, and how many images they work on at once.
HUB_REPOSITORY = "kernels-community/deformable-detr"
IMAGES_AT_ONCE = 64


def package_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by the package ``torch-ms-deform-attn`` (CPU, CUDA)."""
    from torch_ms_deform_attn import ms_deform_attn

    sizes, starts = _as_tensors(shapes, value.device)
    out: Tensor = ms_deform_attn(value.contiguous(), sizes, starts, locations.contiguous(), weights.contiguous())
    return out


def hub_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by the CUDA kernel that the package ``kernels`` fetches from the Hugging Face hub."""
    sizes, starts = _as_tensors(shapes, value.device)
    out: Tensor = _HubSampling.apply(value.contiguous(), sizes, starts, locations.contiguous(), weights.contiguous())
    return out


def _as_tensors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sizes [levels, 2] and first tokens [levels] of the levels."""
    return torch.tensor(list(shapes), device=device), torch.tensor(level_starts(shapes), device=device)


def _hub_kernel() -> ModuleType:
    """Return the kernel; ``kernels`` keeps it after the first time."""
    from kernels import get_kernel

    module: ModuleType = get_kernel(HUB_REPOSITORY)
    return module


class _HubSampling(torch.autograd.Function):
    """The two functions of the kernel as one with a gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, sizes, starts, locations, weights)
        out: Tensor = _hub_kernel().ms_deform_attn_forward(value, sizes, starts, locations, weights, IMAGES_AT_ONCE)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
        found = _hub_kernel().ms_deform_attn_backward(*ctx.saved_tensors, gradient.contiguous(), IMAGES_AT_ONCE)
        of_value, of_locations, of_weights = found
        return of_value, None, None, of_locations, of_weights
