"""A running average of all weights (EMA), which often detects better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lora_detr.branches import BranchedDetector
from lora_detr.exact_weights import load_exact
from lora_detr.models import TwoStageDetector

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """Exponential moving average of a model: each update makes it ``d * average + (1 - d) * weights``.

    d is the smaller of ``decay`` and (1 + n) / (10 + n), where n counts the updates before, so that the random start is
    forgotten within the first steps.
    Buffers are copied, not averaged.

    Args:
        model: what is trained; the average starts as a copy of it.
        decay: in (0, 1).
    """

    def __init__(self, model: BranchedDetector[TwoStageDetector], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)
        # AveragedModel copies the weights at its first update. The copy was made above; updates of our own count here.
        self._averaged.n_averaged += 1

    @property
    def model(self) -> BranchedDetector[TwoStageDetector]:
        """The averaged model; its mode is the caller's business.

        No optimiser knows its parameters, but they ask for gradients like those of a model that was loaded: PyTorch's
        attention chooses its kernel by that, and results are to be the same bit for bit.
        """
        module = self._averaged.module
        assert isinstance(module, BranchedDetector)
        return module

    def update(self, model: BranchedDetector[TwoStageDetector]) -> None:
        """Take in the weights of one more step."""
        self._averaged.update_parameters(model)
        self.updates += 1

    def restore(self, tensors: Mapping[str, Tensor], updates: int, source: Path) -> None:
        """Continue an average that was saved after so many updates.

        Raises:
            CheckpointError: the tensors do not fit the model.
        """
        load_exact(self.model, tensors, source)
        self.updates = updates

    def _average(self, averaged: Tensors, current: Tensors, _: object) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - decay)
