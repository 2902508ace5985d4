"""A Swin network of a few thousand parameters, known to timm by name, and the same network of torchvision."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn
from torchvision.models import SwinTransformer

NAME = "small_swin"
DEPTHS, HEADS, EMBEDDING, WINDOW = (2, 2, 2, 2), (1, 2, 4, 6), 12, 7
SETTINGS: dict[str, Any] = {"kind": "timm", "name": NAME, "weights": "none", "drop_path": 0.0}


@register_model
def small_swin(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build timm's network with the sizes above; timm calls this when it is asked for ``small_swin``."""
    sizes = {"embed_dim": EMBEDDING, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}
    return timm.create_model("swin_tiny_patch4_window7_224", pretrained=pretrained, **(sizes | options))


def official() -> SwinTransformer:
    """Build torchvision's network of the same sizes, with no two values of a tensor alike."""
    network = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=EMBEDDING,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=[WINDOW, WINDOW],
        stochastic_depth_prob=0.0,
        num_classes=3,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def official_maps(network: SwinTransformer, pixels: Tensor) -> list[Tensor]:
    """Return the raw output of each stage, channels first."""
    maps = []
    with torch.no_grad():
        for place, layer in enumerate(network.features):
            pixels = layer(pixels)
            if place % 2 == 1:
                maps.append(pixels.permute(0, 3, 1, 2))
    return maps
