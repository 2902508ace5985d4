"""Deformable attention: one image, query, head, level, point and corner after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sample(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the bilinear value of ``plane`` [H, W, d] at (x, y) in [0, 1]; zero outside.

    Pixel centres are at half integers: pixel (i, j) is centred at ((j + 0.5) / W, (i + 0.5) / H).
    """
    height, width, _ = plane.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = math.floor(column.item()), math.floor(row.item())
    total = plane.new_zeros(plane.shape[-1])
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(column - j)) * (1 - abs(row - i)) * plane[i, j]
    return total


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Return [B, Q, heads * d].

    Args:
        value: [B, S, heads, d], the levels one after the other, each row by row.
        shapes: (height, width) of each level.
        locations: [B, Q, heads, levels, points, 2] as (x, y) in [0, 1].
        weights: [B, Q, heads, levels, points].
    """
    num_images, num_queries, num_heads, num_levels, num_points = weights.shape
    images = []
    for b in range(num_images):
        planes = []
        start = 0
        for height, width in shapes:
            planes.append(value[b, start : start + height * width].reshape(height, width, num_heads, -1))
            start += height * width
        queries = []
        for q in range(num_queries):
            heads = []
            for head in range(num_heads):
                total = value.new_zeros(value.shape[-1])
                for level in range(num_levels):
                    plane = planes[level][:, :, head]
                    for point in range(num_points):
                        x, y = locations[b, q, head, level, point]
                        total = total + weights[b, q, head, level, point] * sample(plane, x, y)
                heads.append(total)
            queries.append(torch.cat(heads))
        images.append(torch.stack(queries))
    return torch.stack(images)
