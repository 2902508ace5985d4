"""Sine encodings of grids and boxes, and the inverse sigmoid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def inverse_sigmoid(values: Tensor, eps: float) -> Tensor:
    """Return log(x / (1 - x)) of values clamped to [0, 1], with numerator and denominator kept at or above ``eps``."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


def sine(angles: Tensor, width: int, temperature: float) -> Tensor:
    """Encode each angle [...] as [..., width]: sin and cos alternate, with falling frequency."""
    steps = torch.arange(width, dtype=torch.float32, device=angles.device)
    wavelengths = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / width)
    phases = angles[..., None] / wavelengths  # [..., width]
    return torch.stack((phases[..., 0::2].sin(), phases[..., 1::2].cos()), dim=-1).flatten(-2)


def grid_encoding(padding: Tensor, width: int, temperature: float = TEMPERATURE) -> Tensor:
    """Encode the cells of a padded grid, vertical half first.

    A coordinate counts the valid cells up to and including its own; (count - 0.5) / last count is scaled to 2 pi.

    Args:
        padding: bool [B, H, W], true where padded.
        width: number of channels; must be divisible by 4.
        temperature: of the sine wavelengths.

    Returns:
        float32 [B, H, W, width].
    """
    valid = (~padding).float()
    rows, columns = valid.cumsum(1), valid.cumsum(2)
    rows = (rows - 0.5) / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
    columns = (columns - 0.5) / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = width // 2
    return torch.cat([sine(rows, half, temperature), sine(columns, half, temperature)], dim=-1)


def box_encoding(boxes: Tensor, width: int, temperature: float = TEMPERATURE) -> Tensor:
    """Encode boxes [..., 4] in [0, 1] as [..., 4 * width], coordinate by coordinate, in float32."""
    return sine(boxes.float() * (2 * math.pi), width, temperature).flatten(-2)
