"""Deformable sampling in plain PyTorch: a reference, and a formulation that takes less work on a CPU.

Both take and give what ``ops.deform_attn.deformable_sampling`` documents, all tensors of one dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def grid_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample every level with ``grid_sample``, weigh, and sum: the reference.

    Queries are the last dimension of whatever is weighed and summed, so that every pass runs along memory; each point
    is added by itself, and no weighted feature is stored.
    """
    batch, _, heads, depth = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [levels, B*heads, P, Q, 2]
    shares = weights.permute(3, 0, 2, 4, 1).reshape(len(shapes), batch * heads, 1, points, queries)
    sampled = []
    for level, level_value in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        height, width = shapes[level]
        maps = level_value.permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        sampled.append(
            F.grid_sample(
                maps, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False
            )  # [B*heads, d, P, Q]
        )
    # Inference has no need of the function, which exporters would keep as a call.
    follows = torch.is_grad_enabled() and any(part.requires_grad for part in (shares, *sampled))
    summed = _WeighedSum.apply(shares, *sampled) if follows else _weighed_sum(shares, sampled)  # [B*heads, d, Q]
    return summed.view(batch, heads * depth, queries).transpose(1, 2)


def _weighed_sum(shares: Tensor, sampled: Sequence[Tensor]) -> Tensor:
    """Return the sum over levels and points of shares [levels, N, 1, P, Q] times features [N, d, P, Q]: [N, d, Q]."""
    total = sampled[0].new_zeros(sampled[0][:, :, 0].shape)
    for features, level_shares in zip(sampled, shares.unbind(0), strict=True):
        for feature, share in zip(features.unbind(2), level_shares.unbind(2), strict=True):
            total.addcmul_(feature, share)
    return total


class _WeighedSum(torch.autograd.Function):
    """The same with a backward pass that goes point by point too, and fills one gradient a level.

    PyTorch's own makes a gradient for each point and then copies all of them into one.
    """

    @staticmethod
    def forward(ctx: Any, shares: Tensor, *sampled: Tensor) -> Tensor:
        ctx.save_for_backward(shares, *sampled)
        return _weighed_sum(shares, sampled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        shares, *sampled = ctx.saved_tensors
        gradient = gradient.contiguous()  # whose layout all that follows takes over
        of_shares = torch.empty_like(shares)
        of_sampled = [gradient.unsqueeze(2) * level_shares for level_shares in shares.unbind(0)]
        for level, features in enumerate(sampled):
            for point, feature in enumerate(features.unbind(2)):
                of_shares[level, :, :, point] = (gradient * feature).sum(1, keepdim=True)
        return of_shares, *of_sampled


def bag_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum the four pixels around every point of a query and head as one weighted bag of rows of ``value``.

    No sampled feature is ever stored: what is kept for the backward pass is an index and a weight a pixel. The sums
    run in a fixed order, whatever the number of threads.
    """
    batch, tokens, heads, depth = value.shape
    queries = locations.shape[1]
    if 0 in (batch, queries, tokens):
        nothing = value.sum() * 0 + locations.sum() * 0 + weights.sum() * 0  # keeps the graph
        return nothing + value.new_zeros(batch, queries, heads * depth)
    rows, shares = _pixels(shapes, tokens, locations, weights)
    table = value.reshape(-1, depth)  # [B*S*heads, d]
    bags = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=shares)
    if table.requires_grad and torch.is_grad_enabled():
        bags = _GradientOfRows.apply(bags, table, rows, shares.detach())
    return bags.view(batch, queries, heads * depth)


def level_starts(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first token of each level."""
    return list(accumulate((height * width for height, width in shapes[:-1]), initial=0))


def _pixels(
    shapes: Sequence[tuple[int, int]], tokens: int, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the pixels that every query and head reads, as rows of [B*S*heads], and the share of each.

    Args:
        shapes: as above.
        tokens: S.
        locations: as above.
        weights: as above.

    Returns:
        int32 and float tensors [B*Q*heads, levels*points*4]. Pixels outside their level have share 0; where a location
        is not finite, the share is not either.
    """
    batch, queries, heads = locations.shape[:3]
    device, whole = locations.device, torch.int32
    last = torch.tensor([(width - 1, height - 1) for height, width in shapes], dtype=whole, device=device)[:, None]
    strides = torch.tensor([(heads, width * heads) for _, width in shapes], dtype=whole, device=device)[:, None]
    starts = torch.tensor(level_starts(shapes), dtype=whole, device=device)
    image = torch.arange(batch, dtype=whole, device=device).view(-1, 1, 1, 1, 1)
    head = torch.arange(heads, dtype=whole, device=device).view(1, 1, -1, 1, 1)
    first = (image * tokens + starts[:, None]) * heads + head  # [B, 1, heads, levels, 1]
    place = locations * (last + 1) - 0.5
    with torch.no_grad():
        low = place.floor()
        corner = low.to(whole)  # meaningless where not finite or too large; clamped, it is at least a pixel
        near, far = corner.clamp(min=0).minimum(last), (corner + 1).clamp(min=0).minimum(last)
        near_inside, far_inside = near == low, far == low + 1
        (left, top), (right, bottom) = (near * strides).unbind(-1), (far * strides).unbind(-1)
        top, bottom = top + first, bottom + first
        rows = torch.stack((top + left, top + right, bottom + left, bottom + right), -1)
    part = place - low
    (of_left, of_top), (of_right, of_bottom) = ((1 - part) * near_inside).unbind(-1), (part * far_inside).unbind(-1)
    of_top, of_bottom = weights * of_top, weights * of_bottom
    shares = torch.stack((of_top * of_left, of_top * of_right, of_bottom * of_left, of_bottom * of_right), -1)
    size = (batch * queries * heads, -1)
    return rows.view(size), shares.view(size)


class _GradientOfRows(torch.autograd.Function):
    """Give the rows of bags their gradient; the sums themselves pass unchanged.

    PyTorch's own gradient of a table adds row by row. Sorted by row, the pairs of bag and weight are bags themselves,
    of gradients this time, so the fast kernel of the forward pass serves here as well.
    """

    @staticmethod
    def forward(ctx: Any, bags: Tensor, table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(rows, shares)
        ctx.size = table.shape[0]
        return bags.view_as(bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None
        rows, shares = ctx.saved_tensors
        ordered, order = rows.flatten().sort(stable=True)
        each = torch.arange(ctx.size, dtype=rows.dtype, device=rows.device)
        starts = torch.searchsorted(ordered, each)
        bag = order // rows.shape[1]
        of_rows = F.embedding_bag(
            bag, gradient.contiguous(), starts, mode="sum", per_sample_weights=shares.flatten()[order]
        )
        return gradient, of_rows, None, None
