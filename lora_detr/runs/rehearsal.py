"""One training step without its update, before the run starts: what will a step cost?"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from lora_detr.data.loader import collate
from lora_detr.data.transforms import EvalTransform, TrainTransform
from lora_detr.losses.criterion import NonFiniteMatchError
from lora_detr.losses.normaliser import Normaliser
from lora_detr.processes.faults import report_out_of_memory
from lora_detr.structures import Batch, Images, PaddedTargets
from lora_detr.training.seeding import keeping_rng_state
from lora_detr.training.step import forward
from lora_detr.training.trainer import Trainer

# A first pass this slow is the measurement itself; a second one would only keep the user waiting.
SLOW_SECONDS = 20.0
# Runs of fewer steps are over before an estimate helps.
WORTHWHILE_STEPS = 20


# Where Linux says how many pages a process has; the second number are those in memory.
PAGES = Path("/proc/self/statm")


@dataclass(frozen=True)
class StepCost:
    """What a step costs one process. Memory is in bytes, on a GPU that of its tensors; reading processes come on top.

    Attributes:
        seconds: of one optimiser step; reading of images, the update and the exchange of gradients are not included.
        peak: largest memory of a step.
        state: weights, their average, gradients and moments, all of which a run holds between steps.
        activations: what forward and backward hold besides, at most.
        batch_size: images of the pass that was measured.
        size: (height, width) of their padded pixels.
        largest: no batch of the run has larger ones.
    """

    seconds: float
    peak: int
    state: int
    activations: int
    batch_size: int
    size: tuple[int, int]
    largest: bool

    def describe_time(self, steps_per_epoch: int, processes: int = 1) -> str:
        """Return the estimate of an epoch as text."""
        without = "reading images" if processes == 1 else "reading images or exchanging gradients"
        return (
            f"about {duration(self.seconds * steps_per_epoch)} per epoch ({self.seconds:.2f} s per step, measured on "
            f"one batch, without {without})"
        )

    def describe_memory(self, processes: int = 1) -> str:
        """Return the memory of a training step as text; evaluation is not in it."""
        each = " in each process" if processes > 1 else ""
        height, width = self.size
        rest = max(0, self.peak - self.state - self.activations)
        return (
            f"{_gigabytes(self.peak)}{each} for {self.batch_size} x {height} x {width} pixels "
            f"({'largest' if self.largest else 'first'} batch): weights, gradients, moments {_gigabytes(self.state)}, "
            f"activations {_gigabytes(self.activations)}, program {_gigabytes(rest)}"
        )


def estimate(trainer: Trainer, *, measure: bool = False) -> StepCost | None:
    """Return what a step costs; None for a run that is over before an estimate helps.

    Args:
        trainer: about to start.
        measure: rehearse however short the run is, and memory for its largest images.
    """
    worthwhile = measure or trainer.plan.total_steps >= WORTHWHILE_STEPS
    return rehearse(trainer, largest=measure) if worthwhile else None


@keeping_rng_state()
def rehearse(trainer: Trainer, largest: bool = False) -> StepCost | None:
    """Run forward and backward on the first images of the training split, and leave no trace.

    Random states, buffers and gradients are as before, so that a run with a rehearsal equals one without bit for bit.

    Args:
        trainer: about to start.
        largest: measure memory on the same images padded to the largest size of the run.

    Returns:
        The cost, or None if matching failed; the run itself will then say why.

    Raises:
        DataError: an image cannot be read.
        WorkerError: P19, memory does not suffice.
    """
    train, model, device = trainer.config.train, trainer.model, trainer.world.device
    batch = _first_batch(trainer)
    bound = _largest_size(trainer)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    before = _held_bytes(device)
    try:
        seconds = _pass(trainer, batch)
        if seconds < SLOW_SECONDS:
            seconds = _pass(trainer, batch)
        if largest and _size(batch) != bound:
            batch = _padded(batch, bound)
            _pass(trainer, batch)
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    except NonFiniteMatchError:
        return None
    finally:
        model.train(was_training)
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    measured = _peak_bytes(device)
    # Gradients that are exchanged are held a second time, in buckets.
    added = trainer.moment_bytes + (gradients if trainer.world.size > 1 else 0)
    return StepCost(
        seconds * train.accumulate,
        measured + added,
        trainer.weight_bytes + gradients + added,
        max(0, measured - before - gradients),
        len(batch.targets),
        _size(batch),
        _size(batch) == bound,
    )


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _first_batch(trainer: Trainer) -> Batch:
    count = len(trainer.loader.dataset)
    samples = [trainer.loader.read(i % count, 0).sample for i in range(trainer.config.train.batch_size)]
    return collate(samples, trainer.config.data.size_divisor)


def _largest_size(trainer: Trainer) -> tuple[int, int]:
    config, splits = trainer.config, trainer.splits
    recipe = config.data.train if splits.augment else config.data.evaluation
    records = splits.train.records
    stored = zip(records.heights.tolist(), records.widths.tolist(), strict=True)
    return largest_size(recipe.build(), stored, config.train.batch_size, config.data.size_divisor)


def _size(batch: Batch) -> tuple[int, int]:
    height, width = batch.images.pixels.shape[-2:]
    return height, width


def _padded(batch: Batch, size: tuple[int, int]) -> Batch:
    """Return the batch with its images padded to a size that is at least theirs."""
    images = batch.images
    beside, below = size[1] - _size(batch)[1], size[0] - _size(batch)[0]
    padding = F.pad(images.padding, (0, beside, 0, below), value=True)
    return replace(batch, images=Images(F.pad(images.pixels, (0, beside, 0, below)), padding, images.sizes))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.{1 if count >= 1e9 else 2}f} GB"


def _pass(trainer: Trainer, batch: Batch) -> float:
    device = trainer.world.device
    start = time.perf_counter()
    height, width = _size(batch)
    with report_out_of_memory(f" for a batch of {len(batch.targets)} x {height} x {width} pixels"):
        batch = batch.to(device)
        output, branches = forward(trainer.model, batch, trainer.config.train.precision)
        report = trainer.criterion(output, branches, PaddedTargets.from_targets(batch.targets), Normaliser(1))
        report.total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _held_bytes(device: torch.device) -> int:
    """Return what is in memory now; where that is not known, the peak until now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if PAGES.exists():
        return int(PAGES.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return _peak_bytes(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def largest_size(
    transform: TrainTransform | EvalTransform, stored: Iterable[tuple[int, int]], batch_size: int, divisor: int
) -> tuple[int, int]:
    """Return the (height, width) in pixels that no padded batch exceeds, without reading an image.

    A wide image beside a tall one is padded to the width of the one and the height of the other; one that is alone is
    not. A crop can turn either into the other, so with crops the bound is seldom reached.

    Args:
        transform: prepares the images.
        stored: (height, width) of each image as stored, at least one.
        batch_size: images padded together.
        divisor: padded sides are rounded up to a multiple of it.
    """
    shorter = max(transform.scales) if isinstance(transform, TrainTransform) else transform.size
    if transform.square:
        sizes = {(shorter, shorter)}
    else:
        shapes = set(stored)
        if isinstance(transform, TrainTransform) and transform.crop_probability:
            low, high = transform.crop_range
            low = min(low, *transform.crop_scales)
            shapes |= {(low, high), (high, low)}
        sizes = {transform.size_rule(height, width, shorter, transform.max_size) for height, width in shapes}
    if batch_size == 1:
        height, width = max(sizes, key=lambda size: size[0] * size[1])
    else:
        height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
