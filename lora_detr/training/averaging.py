"""A running average of all weights (EMA), which often detects better than the weights of the last step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_detr.branches import BranchedDetector
from lora_detr.models import AnyDetector
from lora_detr.tensor_files import load_exact


class WeightAverage:
    """Exponential moving average of a model: each update makes it ``d * average + (1 - d) * weights``.

    d is the smaller of ``decay`` and (1 + n) / (10 + n), where n counts the updates before, so that the random start is
    forgotten within the first steps.
    Buffers are copied, not averaged.

    Args:
        model: what is trained; the average starts as a copy of it.
        decay: in (0, 1).

    Attributes:
        model: the averaged model; its mode is the caller's business.
        updates: taken in so far.
    """

    def __init__(self, model: BranchedDetector[AnyDetector], decay: float) -> None:
        # No optimiser knows the copy's parameters, but they ask for gradients like those of a model that was loaded:
        # PyTorch's attention chooses its kernel by that, and results are to be the same bit for bit.
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: BranchedDetector[AnyDetector]) -> None:
        """Take in the weights of one more step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
        self.updates += 1

    def restore(self, tensors: Mapping[str, Tensor], updates: int, source: Path) -> None:
        """Continue an average that was saved after so many updates.

        Raises:
            CheckpointError: the tensors do not fit the model.
        """
        load_exact(self.model, tensors, source)
        self.updates = updates
