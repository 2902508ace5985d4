"""What layers and branches predict, and their pairs, put side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_detr.structures import Assignment, BranchOutput, Prediction


def repeated_on_layers(pairs: Assignment, layers: int) -> Assignment:
    """Return pairs [1, B, T, k] for several layers, [layers, B, T, k]; for one layer, as they are."""
    if layers == 1:
        return pairs
    shape = (layers, -1, -1, -1)
    return Assignment(pairs.query.expand(shape), pairs.score.expand(shape), pairs.mask.expand(shape))


def stacked(predictions: Sequence[Prediction]) -> Prediction:
    """Stack predictions [B, Q, ...] to [G, B, Q, ...]."""
    return Prediction(
        torch.stack([item.logits for item in predictions]), torch.stack([item.boxes for item in predictions])
    )


def flatten_branches(branches: BranchOutput, reference: Tensor | None) -> Prediction:
    """Stack the layers' predictions [N, B, Q, ...] to [N * L, B, Q, ...], branch by branch."""
    return Prediction(
        torch.stack([layer.logits for layer in branches.layers], dim=1).flatten(0, 1),
        torch.stack([layer.boxes for layer in branches.layers], dim=1).flatten(0, 1),
        reference,
    )


def boxes_refined(layers: Sequence[Tensor | None], copies: int = 1) -> Tensor | None:
    """Stack references [B, Q, R] of L layers to [copies * L, B, Q, 4], detached; None where one is no box."""
    boxes = [layer for layer in layers if layer is not None and layer.shape[-1] >= 4]
    if len(boxes) < len(layers):
        return None
    # The references of some models are wider; where all have 4 numbers, nothing is cut.
    equal = [layer if layer.shape[-1] == 4 else layer[..., :4] for layer in boxes]
    return torch.stack(equal).detach().repeat(copies, 1, 1, 1)
