"""The position relation of Relation-DETR: one pair of boxes, one channel and one head after the other, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH = 16
SCALE = 100.0
TEMPERATURE = 10000.0
SMALLEST_SIDE = 1e-5


def relations(source: Sequence[float], target: Sequence[float]) -> list[float]:
    """Return the four relations of a target box to a source box, both (cx, cy, w, h)."""
    cx1, cy1, w1, h1 = source
    cx2, cy2, w2, h2 = target
    w1, h1, w2, h2 = (side + SMALLEST_SIDE for side in (w1, h1, w2, h2))
    return [
        math.log(abs(cx1 - cx2) / w1 + 1),
        math.log(abs(cy1 - cy2) / h1 + 1),
        math.log(w1 / w2),
        math.log(h1 / h2),
    ]


def encode(value: float) -> list[float]:
    """Return the sine encoding of one relation: sine in even channels, cosine of the same phase behind it."""
    channels = []
    for channel in range(WIDTH):
        wavelength = TEMPERATURE ** (2 * (channel // 2) / WIDTH)
        phase = SCALE * value / wavelength
        channels.append(math.sin(phase) if channel % 2 == 0 else math.cos(phase))
    return channels


def attention_bias(
    source: Sequence[Sequence[float]],
    target: Sequence[Sequence[float]],
    weight: Sequence[Sequence[float]],
    offset: Sequence[float],
) -> list[list[list[float]]]:
    """Return bias[head][query][other query] of one image.

    Args:
        source: boxes of the queries that attend.
        target: boxes of the queries that are attended to.
        weight: of each head, one number for each of the 4 * 16 channels.
        offset: of each head.
    """
    bias = []
    for head_weight, head_offset in zip(weight, offset, strict=True):
        rows = []
        for first in source:
            row = []
            for second in target:
                channels = [channel for value in relations(first, second) for channel in encode(value)]
                total = math.fsum(w * c for w, c in zip(head_weight, channels, strict=True)) + head_offset
                row.append(max(total, 0.0))
            rows.append(row)
        bias.append(rows)
    return bias
