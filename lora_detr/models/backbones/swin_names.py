"""Names of a Swin network's tensors in torchvision, in Microsoft's release and in timm's feature networks.

The detector's own names are those of timm's feature networks. Differences: torchvision numbers patch embedding, stages
and patch mergings in one row; Microsoft counts a patch merging to the stage before it, timm to the stage behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = r"norm[12]\.\w+|attn\.(?:qkv|proj)\.\w+|attn\.relative_position_bias_table"
_OFFICIAL_BLOCK = re.compile(rf"^features\.(\d*[13579])\.(\d+)\.(?:({_BLOCK})|mlp\.([03])\.(\w+))$")
_OFFICIAL_MERGING = re.compile(r"^features\.(\d*[02468])\.((?:norm|reduction)\.\w+)$")
_OFFICIAL_EMBEDDING = re.compile(r"^features\.0\.([02])\.(\w+)$")
_TIMM_BLOCK = re.compile(rf"^layers_(\d+)\.blocks\.(\d+)\.(?:({_BLOCK})|mlp\.fc([12])\.(\w+))$")
_TIMM_MERGING = re.compile(r"^layers_(\d+)\.downsample\.((?:norm|reduction)\.\w+)$")
_TIMM_EMBEDDING = re.compile(r"^patch_embed\.(proj|norm)\.(\w+)$")
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")

_LINEAR_TO_TIMM = {"0": "1", "3": "2"}
_LINEAR_TO_TORCHVISION = {ours: theirs for theirs, ours in _LINEAR_TO_TIMM.items()}


def to_timm(name: str) -> str | None:
    """Return the name in timm's feature network of a torchvision tensor such as ``features.1.0.mlp.0.weight``.

    None for what that network does not hold: ``relative_position_index``, final norm and classifier, other networks.
    """
    if match := _OFFICIAL_EMBEDDING.match(name):
        part, leaf = match.groups()
        return f"patch_embed.{'proj' if part == '0' else 'norm'}.{leaf}"
    if match := _OFFICIAL_BLOCK.match(name):
        place, block, rest, linear, leaf = match.groups()
        return f"layers_{int(place) // 2}.blocks.{block}." + (rest or f"mlp.fc{_LINEAR_TO_TIMM[linear]}.{leaf}")
    if (match := _OFFICIAL_MERGING.match(name)) and match.group(1) != "0":
        return f"layers_{int(match.group(1)) // 2}.downsample.{match.group(2)}"
    return None


def to_torchvision(name: str) -> str | None:
    """Return torchvision's name of a tensor of timm's feature network; None for another network. Undoes ``to_timm``."""
    if match := _TIMM_EMBEDDING.match(name):
        part, leaf = match.groups()
        return f"features.0.{0 if part == 'proj' else 2}.{leaf}"
    if match := _TIMM_BLOCK.match(name):
        stage, block, rest, linear, leaf = match.groups()
        place = 2 * int(stage) + 1
        return f"features.{place}.{block}." + (rest or f"mlp.{_LINEAR_TO_TORCHVISION[linear]}.{leaf}")
    if (match := _TIMM_MERGING.match(name)) and match.group(1) != "0":
        return f"features.{2 * int(match.group(1))}.{match.group(2)}"
    return None


def relative_position_index(window: int) -> Tensor:
    """Return for each pair of positions of a window its row in the table of relative position biases.

    Args:
        window: side of the window, at least 1.

    Returns:
        int64 [window ** 4], pairs in row-major order, as torchvision stores it.
    """
    position = torch.arange(window)
    distance = position[:, None] - position + window - 1  # [w, w], 0 to 2w - 2
    rows, columns = distance[:, None, :, None], distance[None, :, None, :]
    return (rows * (2 * window - 1) + columns).flatten()


def as_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a file of Swin weights as timm does, wherever it came from.

    Args:
        state: in torchvision's, Microsoft's or timm's naming; or of another network, which is returned as it is.

    Returns:
        the same tensors; those without place in timm's network keep their names.
    """
    if "features.1.0.attn.qkv.weight" in state:
        return {to_timm(name) or name: value for name, value in state.items()}
    if "layers.0.downsample.reduction.weight" in state:
        return {_DOWNSAMPLE.sub(_next_stage, name): value for name, value in state.items()}
    return dict(state)


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match.group(1)) + 1}.downsample."
