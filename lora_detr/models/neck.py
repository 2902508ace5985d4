"""From feature maps to one sequence of memory tokens: projection, positions, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.ops.positional import grid_encoding


@dataclass(frozen=True)
class Tokens:
    """All levels of a batch, flattened one after the other.

    Attributes:
        features: [B, S, D].
        position: [B, S, D], sine encoding plus level embedding.
        padding: bool [B, S].
        shapes: (height, width) of each level.
        valid_ratios: [B, levels, 2], share of valid columns and rows (x, y) of each level.
    """

    features: Tensor
    position: Tensor
    padding: Tensor
    shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor


class Neck(nn.Module):
    """Project backbone maps to a common width and add coarser levels by stride-2 convolutions.

    Level i below the number of maps is a 1x1 convolution of map i; the first extra level is a 3x3 stride-2
    convolution of the last raw map, each further one of the level before. Every level has GroupNorm(32).

    Args:
        channels: of the backbone's maps.
        hidden_dim: D, width of every level.
        levels: number of levels, at least the number of maps.
        bias: of the convolutions.
    """

    def __init__(self, channels: Sequence[int], hidden_dim: int, levels: int, bias: bool = True) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(count, hidden_dim, 1, bias=bias) for count in channels]
        inputs = channels[-1]
        for _ in range(levels - len(channels)):
            convolutions.append(nn.Conv2d(inputs, hidden_dim, 3, stride=2, padding=1, bias=bias))
            inputs = hidden_dim
        self.projections = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(32, hidden_dim)) for convolution in convolutions
        )

    def initialise(self) -> None:
        """Xavier-uniform convolutions, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels, each [B, D, H_i, W_i], finest first."""
        levels: list[Tensor] = []
        for i, projection in enumerate(self.projections):
            if i < len(maps):
                source = maps[i]
            else:
                source = maps[-1] if i == len(maps) else levels[-1]
            levels.append(projection(source))
        return levels


def flatten_levels(levels: Sequence[Tensor], padding: Tensor, level_embedding: Tensor) -> Tokens:
    """Flatten levels [B, D, H_i, W_i] into tokens, with positions from the image's padding mask [B, H, W]."""
    features, positions, masks, ratios, shapes = [], [], [], [], []
    for i, level in enumerate(levels):
        height, width = level.shape[-2:]
        mask = F.interpolate(padding[:, None].float(), size=(height, width)).bool()[:, 0]
        position = grid_encoding(mask, level.shape[1]) + level_embedding[i]
        features.append(level.flatten(2).transpose(1, 2))
        positions.append(position.flatten(1, 2))
        masks.append(mask.flatten(1))
        valid = ~mask
        ratios.append(torch.stack((valid[:, 0, :].sum(1) / width, valid[:, :, 0].sum(1) / height), dim=-1))
        shapes.append((height, width))
    return Tokens(
        torch.cat(features, 1),
        torch.cat(positions, 1),
        torch.cat(masks, 1),
        tuple(shapes),
        torch.stack(ratios, dim=1),
    )
