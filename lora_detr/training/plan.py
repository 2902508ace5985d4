"""Which step of a run belongs to which epoch, and which is the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lora_detr.json_value import JSON


@dataclass(frozen=True)
class Plan:
    """Turns steps into epochs.

    Steps are counted from the start of a run and never renumbered, since checkpoints and logs are named by them. A run
    that goes on with another batch has epochs of another length; ``shift`` then says where they begin.

    Attributes:
        steps_per_epoch: optimiser steps of an epoch, at least 1.
        epochs: of the run.
        max_steps: last step, if the epochs do not end before; None for no limit.
        global_batch: images of an optimiser step.
        shift: steps done minus those that this plan would have taken to get as far.
    """

    steps_per_epoch: int
    epochs: int
    max_steps: int | None
    global_batch: int
    shift: int = 0

    @property
    def total_steps(self) -> int:
        """The last step of the run."""
        last = self.shift + self.steps_per_epoch * self.epochs
        return last if self.max_steps is None else min(last, self.max_steps)

    @property
    def length(self) -> int:
        """How many steps the whole run would have with this plan from its start; what schedules refer to."""
        return self.total_steps - self.shift

    def done(self, step: int) -> int:
        """Return how many steps of this plan are done when ``step`` steps of the run are."""
        return step - self.shift

    def epoch(self, step: int) -> int:
        """Return the epoch, 0 first, that the step after ``step`` belongs to."""
        return self.done(step) // self.steps_per_epoch

    def place(self, step: int) -> int:
        """Return how many steps of its epoch are done."""
        return self.done(step) % self.steps_per_epoch

    def is_end(self, step: int, epochs: int = 1) -> bool:
        """Return whether an epoch ends with a step, or every so many epochs."""
        return self.done(step) % (self.steps_per_epoch * epochs) == 0

    def resume(self, state: object, step: int) -> Plan:
        """Return this plan for a run that has come to ``step`` with the plan of a checkpoint.

        The run goes on in the same epoch, behind the images that were seen in it. Where those do not fill a whole
        number of new batches, the rest of the last batch is left out of this epoch.

        Args:
            state: what ``to_json`` returned then.
            step: of the checkpoint.
        """
        if not isinstance(state, Mapping):
            return self
        old = replace(self, **{name: int(state[name]) for name in ("steps_per_epoch", "global_batch", "shift")})
        if (old.steps_per_epoch, old.global_batch) == (self.steps_per_epoch, self.global_batch):
            return replace(self, shift=old.shift)
        within = min(-(-old.place(step) * old.global_batch // self.global_batch), self.steps_per_epoch)
        return replace(self, shift=step - old.epoch(step) * self.steps_per_epoch - within)

    def to_json(self) -> dict[str, JSON]:
        """Return what a checkpoint must hold."""
        return {"steps_per_epoch": self.steps_per_epoch, "global_batch": self.global_batch, "shift": self.shift}
