"""Settings of the optimiser and of its schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from lora_detr.config.base import Strict

Moment = Annotated[float, Field(ge=0, lt=1)]


class LrRule(Strict):
    """A part of the model that learns at a scaled rate."""

    pattern: str
    """Parameter names it applies to; ``*`` stands for anything, so ``detector.heads.boxes.*`` is a prefix."""
    scale: float = Field(ge=0)
    """Factor on the learning rate. Of several rules that match, the last one counts alone; scales do not multiply."""


class OptimizerConfig(Strict):
    """AdamW and its groups."""

    # Rate, decay, norm and batch are those of the authors' scripts; the moments are PyTorch's defaults.
    lr: float = Field(2e-4, gt=0)
    """Learning rate for the reference batch."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Moment, Moment] = (0.9, 0.999)
    """Decay of the running moments."""
    clip_norm: float | None = Field(0.1, gt=0)
    """Largest norm of the whole gradient; null does not clip."""
    clip: Literal["together"] = Field("together", exclude=True)
    """No choice, and never written: settings of earlier runs name it, and must still be read."""
    lr_rules: tuple[LrRule, ...] = ()
    """Parts that learn at a scaled rate. A rule that matches no parameter is an error."""
    no_decay: tuple[str, ...] = ()
    """Patterns of parameters without weight decay."""
    reference_batch: int = Field(16, ge=1)
    """Global batch that ``lr`` is meant for; printed beside the real one."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Scale ``lr`` with the global batch. ``linear``: in proportion to it; ``sqrt``: to its square root."""

    def rate_for(self, batch: int) -> float:
        """Return the learning rate for a global batch of ``batch`` images, at least 1."""
        ratio = batch / self.reference_batch
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.scale_lr]


class ScheduleConfig(Strict):
    """Step decay of the learning rate after an optional linear warm-up."""

    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """The same as a share of all steps of the run; the longer of both counts."""
    warmup_start: float | None = Field(None, ge=0, le=1)
    """Factor at the first step, such as 0.001; the warm-up then ends by the last step of the first epoch at the latest
    (Relation family). Null starts at 1 / ``warmup_steps`` and takes all of them. Not used without warm-up."""
    drop_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs at whose start the rate is multiplied by ``factor``."""
    drop_fractions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """The same, as shares of all steps of the run."""
    # The authors' schedules drop tenfold.
    factor: float = Field(0.1, gt=0, le=1)
    """Factor of each drop."""
