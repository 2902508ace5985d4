"""One LoRA branch of a feed-forward network with merged weights: W + scale * B A (Eq. 3).

A is [rank, in] and B is [out, rank], as in the paper. Official checkpoints hold their transposes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float = 1.0) -> Tensor:
    """Return W + scale * B A, entry by entry.

    Args:
        weight: W [out, in].
        down: A [rank, in].
        up: B [out, rank].
        scale: factor of the update.
    """
    result = weight.clone()
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            for r in range(down.shape[0]):
                result[o, i] = result[o, i] + scale * up[o, r] * down[r, i]
    return result


def branch(
    inputs: Tensor,
    first: tuple[Tensor, Tensor, Tensor, Tensor],
    second: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float = 1.0,
) -> Tensor:
    """Return the projection of the branch, before dropout, residual and norm.

    Args:
        inputs: [..., in].
        first: W1 [hidden, in], b1 [hidden], A1, B1.
        second: W2 [out, hidden], b2 [out], A2, B2.
        scale: factor of both updates.
    """
    weight1, bias1, down1, up1 = first
    weight2, bias2, down2, up2 = second
    hidden = torch.relu(inputs @ merged(weight1, down1, up1, scale).T + bias1)
    return hidden @ merged(weight2, down2, up2, scale).T + bias2
