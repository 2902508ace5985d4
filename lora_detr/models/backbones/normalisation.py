"""Normalisation without batch statistics, so that results do not depend on how a batch is split."""

from __future__ import annotations

import math

from torch import nn

# Upper bound of the number of groups, as in the rest of the detector.
MAX_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with the largest number of groups that divides both 32 and ``channels``."""
    return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)


def replace_batch_norm(module: nn.Module) -> None:
    """Replace each batch norm below ``module`` by a trainable GroupNorm, in place, keeping a fused activation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            parts: list[nn.Module] = [group_norm(child.num_features)]
            # timm fuses dropout and activation into its batch norm; keep both behind the new norm.
            parts += [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
            setattr(module, name, nn.Sequential(*parts) if len(parts) > 1 else parts[0])
        else:
            replace_batch_norm(child)
