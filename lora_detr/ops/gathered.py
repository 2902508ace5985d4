"""``grid_sample`` by indexing and arithmetic, for runtimes that lack the operator or compute it wrongly."""

from __future__ import annotations

import torch
from torch import Tensor


def gathered_grid_sample(
    input: Tensor,  # noqa: A002 (the name of the function that this one stands for)
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """Return what ``torch.nn.functional.grid_sample`` does, for the one setting that detectors use.

    Args:
        input: [N, C, H, W].
        grid: [N, H', W', 2] as (x, y), in [-1, 1] inside the map.
        mode: ``bilinear``.
        padding_mode: ``zeros``.
        align_corners: false.

    Returns:
        [N, C, H', W'].

    Raises:
        NotImplementedError: another setting.
    """
    if (mode, padding_mode, bool(align_corners)) != ("bilinear", "zeros", False):
        raise NotImplementedError(f"{mode=}, {padding_mode=}, {align_corners=}")
    height, width = input.shape[-2:]
    # Sizes may be tensors while a graph is traced; `new_tensor` and `min` would make constants of them.
    extent = torch.tensor((width, height), dtype=grid.dtype, device=grid.device)
    place = ((grid + 1) * extent - 1) / 2  # in pixels, whose centres are at whole numbers
    low = place.floor()
    part = place - low
    flat = input.flatten(2)  # [N, C, H*W]
    total = None
    for right in (False, True):
        for lower in (False, True):
            shift = low.new_tensor((float(right), float(lower)))
            corner = low + shift
            inside = ((corner >= 0) & (corner <= extent - 1)).all(-1)  # [N, H', W']
            share = (part if right else 1 - part)[..., 0] * (part if lower else 1 - part)[..., 1] * inside
            column, row = torch.minimum(corner.clamp(min=0), extent - 1).long().unbind(-1)
            index = (row * width + column).flatten(1)[:, None].expand(-1, input.shape[1], -1)
            value = flat.gather(2, index).view(input.shape[0], input.shape[1], *grid.shape[1:3]) * share[:, None]
            total = value if total is None else total + value
    assert total is not None
    return total
