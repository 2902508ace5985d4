"""The highest or lowest values of a tensor, equal ones by rising index on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def best_first(values: Tensor, count: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """Return what ``topk`` does along the last axis, with a fixed choice and order among equal values.

    ``topk`` picks and orders equal values differently from device to device. So it is given whole numbers that are all
    different and order as value, then place: the bits of a float32, read as an integer, with the place below them.

    Args:
        values: [..., n], compared in float32; NaN counts as infinite.
        count: k, at most n; may be 0.
        largest: the highest values, falling; else the lowest, rising.

    Returns:
        The values [..., k] and their places, int64 [..., k].
    """
    if torch.onnx.is_in_onnx_export():  # whose operator has the same order, and which cannot reinterpret bits
        return values.topk(count, dim=-1, largest=largest)
    if count == 0:
        return values.topk(0, dim=-1)
    # Tests make `torch.float32` mean float64; `torch.float` stays. A sum with 0, as -0 has bits of its own. Of negative
    # numbers the larger magnitude has the larger bits.
    finite = values.detach().to(torch.float).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    bits = finite.view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    place = torch.arange(values.shape[-1], device=values.device)
    keys = (order - place if largest else order + place).topk(count, dim=-1, largest=largest).values
    places = (-keys if largest else keys) & 0xFFFFFFFF
    return values.gather(-1, places), places
