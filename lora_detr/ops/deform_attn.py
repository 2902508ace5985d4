"""Multi-scale deformable sampling (Zhu et al., 2021, Eq. 3), by the kernel that was chosen for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_detr.ops.sampling_choice import kernel_for


def deformable_sampling(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sample each level bilinearly at the given points and sum with the given weights.

    Pixel centres lie at half integers and everything outside a level counts as zero. Differentiable in value,
    locations and weights. All kernels give the same up to rounding.

    Args:
        value: [B, S, heads, d], the levels one after the other, row by row.
        shapes: (height, width) of each level, known on the host; their areas sum to S.
        locations: [B, Q, heads, levels, points, 2] as (x, y), relative to the level, in [0, 1] inside it.
        weights: [B, Q, heads, levels, points]; they sum to 1 over levels and points.

    Returns:
        [B, Q, heads * d] in the dtype of ``value``. Under autocast the sampling itself runs in the dtype of the
        locations, since a coordinate in bfloat16 would be off by whole pixels of a fine level.

    Raises:
        ConfigError: the kernel that the environment names is unknown, not installed, or does not pass its check.
    """
    kernel = kernel_for(locations.device.type, locations.dtype == torch.float32, value.shape[-1])
    sampled = kernel(value.to(locations.dtype), shapes, locations, weights.to(locations.dtype))
    return sampled.to(value.dtype)
