"""``loradetr`` with a weight that becomes NaN: ``python -m tests.unit.doctor.diverging RANK STEP NAME ARGUMENTS...``.

In process RANK the parameter NAME is set to NaN before STEP; the other processes stay as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch

from lora_detr.cli import main
from lora_detr.processes.process import own_rank
from lora_detr.structures import Batch
from lora_detr.training.step import Stepper, StepResult


def spoil(step: int, name: str) -> None:
    """Let every stepper of this process find NaN in a parameter from a step on."""
    call = Stepper.__call__

    def diverging(self: Stepper, batches: Sequence[Batch], at: int) -> StepResult:
        if at == step:
            model = getattr(self.model, "module", self.model)
            with torch.no_grad():
                model.get_parameter(name).fill_(math.nan)
        return call(self, batches, at)

    Stepper.__call__ = diverging  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, step, name = sys.argv[1:4]
    if own_rank() == int(rank):
        spoil(int(step), name)
    del sys.argv[1:4]
    main()
