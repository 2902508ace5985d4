"""From pixels as they are read to what a backbone was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_detr.errors import ConfigError
from lora_detr.structures import Images


class PixelNormalisation(nn.Module):
    """Scales pixels to [0, 1], subtracts a mean and divides by a standard deviation; here, so on the device.

    Bytes are a quarter of what floats are on the way there, from process to process and to a GPU. The statistics are no
    weights: they come with the settings of a detector, and no state dict holds them.

    Args:
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, likewise.

    Raises:
        ConfigError: a standard deviation is 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not all(std):
            raise ConfigError(
                f"model.backbone.std: expected numbers other than 0, found {list(std)}",
                "leave it out: --set model.backbone.std=null",
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Tensor:
        """Return float pixels [B, 3, H, W], zero where padded.

        Those that are float already are normalised, and stay as they are.
        """
        if images.pixels.dtype != torch.uint8:
            return images.pixels
        # In the order, and so with the bits, of torchvision's ``to_dtype`` and ``normalize``.
        pixels = images.pixels.to(self.mean.dtype).mul_(1.0 / 255).sub_(self.mean).div_(self.std)
        return pixels.masked_fill_(images.padding[:, None], 0.0)
