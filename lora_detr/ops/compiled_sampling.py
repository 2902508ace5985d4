"""Deformable sampling by a compiled package that may be installed and is not required.

It takes and gives what ``ops.deform_attn.deformable_sampling`` documents, all tensors float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_detr.ops.sampling import level_starts


def package_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by the package ``torch-ms-deform-attn`` (CPU, CUDA)."""
    from torch_ms_deform_attn import ms_deform_attn

    sizes = torch.tensor(list(shapes), device=value.device)  # [levels, 2]
    starts = torch.tensor(level_starts(shapes), device=value.device)  # [levels], first token of each
    out: Tensor = ms_deform_attn(value.contiguous(), sizes, starts, locations.contiguous(), weights.contiguous())
    return out
