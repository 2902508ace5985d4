"""One training step without its update, before the run starts: what will a step cost?"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from lora_detr.data.loader import collate
from lora_detr.losses.criterion import NonFiniteMatchError
from lora_detr.losses.normaliser import Normaliser
from lora_detr.structures import Batch, PaddedTargets
from lora_detr.training.seeding import restore_rng_state, rng_state
from lora_detr.training.trainer import Trainer

# A first pass this slow is the measurement itself; a second one would only keep the user waiting.
SLOW_SECONDS = 20.0
# Runs of fewer steps are over before an estimate helps.
WORTHWHILE_STEPS = 20


@dataclass(frozen=True)
class StepCost:
    """What a step costs.

    Attributes:
        seconds: of one optimiser step, reading of images and the update itself not included.
        peak_bytes: largest memory of this process so far, or on a GPU of its tensors, and what the optimiser will add.
            Processes that read images are not counted.
    """

    seconds: float
    peak_bytes: int

    def describe(self, steps_per_epoch: int) -> str:
        """Return the estimate of an epoch as text."""
        return (
            f"about {duration(self.seconds * steps_per_epoch)} an epoch ({self.seconds:.2f} s a step, measured on one "
            f"batch, without reading images), {self.peak_bytes / 1e9:.1f} GB"
        )


def rehearse(trainer: Trainer) -> StepCost | None:
    """Run forward and backward on the first images of the training split, and leave no trace.

    Random states, buffers and gradients are as before, so that a run with a rehearsal equals one without bit for bit.

    Returns:
        The cost, or None if matching failed; the run itself will then say why.

    Raises:
        DataError: an image cannot be read.
    """
    train, model = trainer.config.train, trainer.model
    dataset = trainer.loader.dataset
    batch = collate(
        [trainer.loader.read(i % len(dataset), 0).sample for i in range(train.batch_size)],
        trainer.config.data.size_divisor,
    )
    random, buffers = rng_state(), {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    try:
        seconds = _pass(trainer, batch)
        if seconds < SLOW_SECONDS:
            seconds = _pass(trainer, batch)
    except NonFiniteMatchError:
        return None
    finally:
        model.train(was_training)
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        restore_rng_state(random)
    return StepCost(seconds * train.accumulate, _peak_bytes(trainer.world.device) + trainer.moment_bytes)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _pass(trainer: Trainer, batch: Batch) -> float:
    device, train = trainer.world.device, trainer.config.train
    start = time.perf_counter()
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
        output, branches = trainer.model(batch.images, batch.targets)
    report = trainer.criterion(output, branches, PaddedTargets.from_targets(batch.targets), Normaliser(1))
    report.total.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
