"""Multi-scale deformable sampling (Zhu et al., 2021, Eq. 3): the reference implementation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_sampling(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sample each level bilinearly at the given points and sum with the given weights.

    Pixel centres lie at half integers and everything outside a level counts as zero. Differentiable in value,
    locations and weights.

    Args:
        value: [B, S, heads, d], the levels one after the other, row by row.
        shapes: (height, width) of each level, known on the host; their areas sum to S.
        locations: [B, Q, heads, levels, points, 2] as (x, y), relative to the level, in [0, 1] inside it.
        weights: [B, Q, heads, levels, points]; they sum to 1 over levels and points.

    Returns:
        [B, Q, heads * d] in the dtype of ``value``. Under autocast the sampling itself runs in the dtype of the
        locations, since a coordinate in bfloat16 would be off by whole pixels of a fine level.
    """
    kind = value.dtype
    value, weights = value.to(locations.dtype), weights.to(locations.dtype)
    batch, _, heads, depth = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [levels, B*heads, Q, P, 2]
    sampled = []
    for level, level_value in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        height, width = shapes[level]
        maps = level_value.permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        sampled.append(
            F.grid_sample(
                maps, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False
            )  # [B*heads, d, Q, P]
        )
    stacked = torch.stack(sampled, dim=-2).flatten(-2)  # [B*heads, d, Q, levels*P]
    flat_weights = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, len(shapes) * points)
    summed = (stacked * flat_weights).sum(-1)  # [B*heads, d, Q]
    return summed.view(batch, heads * depth, queries).transpose(1, 2).to(kind)
