"""Swin blocks that take maps of any size, in place of timm's, which are made for one.

timm shifts a map before it pads it to whole windows, so that windows and masks agree only where nothing is padded. Here
a map is padded first, as in torchvision and in the detectors of Swin's authors (Liu et al., 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

# Added to the attention between positions that the shift alone made neighbours, as in the code of Swin's authors.
SEPARATION = -100.0


class ShiftedWindowBlock(nn.Module):
    """A Swin block: attention within (shifted) windows, then a feed-forward network.

    It holds the layers of timm's block under their names, so that the names of its parameters stay.

    Args:
        block: of timm, Swin or Swin v2; its layers are taken over, not copied.
    """

    def __init__(self, block: SwinTransformerBlock | SwinTransformerV2Block) -> None:
        super().__init__()
        self.norm1: nn.Module = block.norm1
        self.attn: nn.Module = block.attn
        self.drop_path1: nn.Module = block.drop_path1
        self.norm2: nn.Module = block.norm2
        self.mlp: nn.Module = block.mlp
        self.drop_path2: nn.Module = block.drop_path2
        self.window: tuple[int, int] = block.window_size
        # timm drops the shift of a block whose usual map is one window; here the map at hand decides.
        self.shift: tuple[int, int] = block.target_shift_size
        self.norm_first = isinstance(block, SwinTransformerBlock)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return a map [B, H, W, C] of the shape of ``hidden``; H and W are at least 1."""
        attended = self._attend(self.norm1(hidden)) if self.norm_first else self.norm1(self._attend(hidden))
        hidden = hidden + self.drop_path1(attended)
        changed = self.mlp(self.norm2(hidden)) if self.norm_first else self.norm2(self.mlp(hidden))
        result: Tensor = hidden + self.drop_path2(changed)
        return result

    def _attend(self, hidden: Tensor) -> Tensor:
        _, height, width, _ = hidden.shape
        whole_height, whole_width = (math.ceil(n / w) * w for n, w in zip((height, width), self.window, strict=True))
        padded = F.pad(hidden, (0, 0, 0, whole_width - width, 0, whole_height - height))
        # An axis of a single window has no neighbours to exchange with.
        rows = self.shift[0] if whole_height > self.window[0] else 0
        columns = self.shift[1] if whole_width > self.window[1] else 0
        if not (rows or columns):
            windows = partition(padded, self.window)
            return reverse(self.attn(windows, mask=None), padded, self.window)[:, :height, :width]
        rolled = padded.roll((-rows, -columns), dims=(1, 2))
        windows = partition(rolled, self.window)
        mask = shift_mask((whole_height, whole_width), self.window, (rows, columns), windows)
        attended = reverse(self.attn(windows, mask=mask), rolled, self.window)
        return attended.roll((rows, columns), dims=(1, 2))[:, :height, :width]


def accept_any_size(body: nn.Module) -> None:
    """Let a timm network with Swin or Swin v2 blocks take images of any size, in place; others stay untouched.

    The patch embedding then drops up to three rows and columns at the lower right, as torchvision's does.

    Args:
        body: with or without weights; names of parameters stay, and no buffer depends on the size.
    """
    if not any(isinstance(module, SwinTransformerBlock | SwinTransformerV2Block) for module in body.modules()):
        return
    for module in list(body.modules()):
        if isinstance(module, PatchEmbed):
            module.img_size = None
        for name, child in module.named_children():
            if isinstance(child, SwinTransformerBlock | SwinTransformerV2Block):
                setattr(module, name, ShiftedWindowBlock(child))


def partition(hidden: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map [B, H, W, C] of whole windows into tokens [B * windows, positions, C], row by row."""
    batch, height, width, channels = hidden.shape
    grid = hidden.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return grid.transpose(2, 3).reshape(-1, window[0] * window[1], channels)


def reverse(windows: Tensor, like: Tensor, window: tuple[int, int]) -> Tensor:
    """Put tokens [B * windows, positions, C] together to a map of the shape of ``like``, [B, H, W, C]."""
    batch, height, width, channels = like.shape
    grid = windows.reshape(batch, height // window[0], width // window[1], window[0], window[1], channels)
    return grid.transpose(2, 3).reshape(batch, height, width, channels)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Return what is added to the attention of a rolled map: far apart on the map means separated in the window.

    Computed for each map: it costs far less than the attention it is added to, and sizes rarely come back.

    Args:
        size: height and width of the padded map, whole windows.
        window: height and width.
        shift: rows and columns by which the map was rolled, less than a window.
        like: gives device and dtype.

    Returns:
        [windows, positions, positions], 0 or -100.
    """
    # Rows and columns that were rolled round the edge; they share a window with others in the last one only.
    rows, columns = (torch.arange(n, device=like.device) >= n - s for n, s in zip(size, shift, strict=True))
    parts = (2 * rows[:, None].int() + columns.int())[None, :, :, None]  # [1, H, W, 1]
    labels = partition(parts, window)[:, :, 0]
    return (labels[:, :, None] != labels[:, None, :]).to(like.dtype) * SEPARATION
