"""The processes of ``test_distributed.py``: ``python -m tests.unit.training.one_rank DATA OUT SIZE...``.

Cases come on stdin. All ranks of all numbers of processes are forks of this one, since importing everything takes
longer than all they do.
For every case each rank takes its part of the same global batch, trains a new model for one step, and writes the
averaged gradients, the weights and the loss.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, Target
from lora_detr.tensor_files import write_tensors
from tests import small_runs
from tests.commands import free_port

SMALL = "small"
# Name -> preset and changes. Nothing random beside the initial weights, and no statistics of a batch.
SYSTEMS: dict[str, tuple[str, ...]] = {
    "hybrid and dac": (
        "deformable-tiny",
        "model.dac=true",
        "model.hybrid={num_queries: 15}",
        "loss.hybrid.repeats=3",
        "loss.dac.matcher.positive_fraction=null",
    ),
    "relation without denoising": ("relation-tiny-lora3", "model.denoising=null"),
    "denoising without noise": ("relation-tiny", "model.denoising={num_queries: 12, label_noise: 0, box_noise: 0}"),
}


@dataclass(frozen=True)
class Case:
    """One step.

    Attributes:
        name: of its files.
        images: the global batch, by place in the file.
        keep: so many objects of each image, at most.
        system: name in ``SYSTEMS``, or ``SMALL``.
        double: compute in float64.
    """

    name: str
    images: tuple[int, ...]
    keep: tuple[int, ...]
    system: str = SMALL
    double: bool = True

    def part(self, splits: Splits, settings: RunConfig, world: World) -> Batch:
        """Return the images of one rank, padded as those of the others: all are of one size."""
        size = len(self.images) // world.size
        own = slice(world.rank * size, (world.rank + 1) * size)
        batch = small_runs.batch_of(splits, settings, self.images[own])
        pairs = zip(batch.targets, self.keep[own], strict=True)
        return replace(batch, targets=tuple(_first_objects(target, count) for target, count in pairs))


def main(data: Path, out: Path, sizes: Sequence[int]) -> None:
    """Run all ranks of all numbers of processes; the first one that fails ends the others."""
    torch.set_num_threads(1)
    cases = [Case(**fields) for fields in json.load(sys.stdin)]
    for system in {case.system for case in cases}:
        prepared(system, data)
    fork = multiprocessing.get_context("fork")
    ranks = []
    for size in sizes:
        port = free_port()
        ranks += [
            fork.Process(target=run_rank, args=(rank, size, port, cases, data, out), daemon=True)
            for rank in range(size)
        ]
    for process in ranks:
        process.start()
    running = {process.sentinel: process for process in ranks}
    while running:
        for ended in multiprocessing.connection.wait(list(running)):
            process = running.pop(ended)
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


def run_rank(rank: int, size: int, port: int, cases: Sequence[Case], data: Path, out: Path) -> None:
    """Write what one of ``size`` processes computes."""
    numbers = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in numbers.items()}})
    world = World.from_environment("cpu")
    for case in cases:
        with in_double() if case.double else summed_alike():
            write_tensors(out / f"{case.name}-{size}-{rank}.safetensors", step(case, data, world))
    world.close()


def step(case: Case, data: Path, world: World) -> dict[str, torch.Tensor]:
    """Return what a step leaves: the loss, a gradient of each parameter that has one, and all weights."""
    settings, splits = prepared(case.system, data)
    stepper = small_runs.stepper(settings, splits.categories.num_classes, world)
    batch = case.part(splits, settings, world)
    result = stepper([_doubled(batch) if case.double else batch], 0)
    tensors = {"loss": torch.tensor(result.loss, dtype=torch.float64)}
    for name, parameter in stepper.model.named_parameters():
        key = name.removeprefix("module.")
        tensors[f"weight/{key}"] = parameter.detach()
        if parameter.grad is not None:
            assert (parameter.grad.dtype == torch.float64) == case.double, key
            tensors[f"gradient/{key}"] = parameter.grad
    return tensors


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Compute everything in float64, also what asks for float32.

    Rounding is then far below any fault in what a rank contributes.
    """
    single, to_single = torch.float32, torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = single, to_single  # type: ignore[method-assign, misc]
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def summed_alike() -> Iterator[None]:
    """Compute in float32 without oneDNN.

    Its convolutions add up in another order for another number of images, which moves the gradient by 3e-6.
    """
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def as_input(cases: Sequence[Case]) -> str:
    """Return what ``main`` reads."""
    return json.dumps([asdict(case) for case in cases])


@cache
def prepared(system: str, data: Path) -> tuple[RunConfig, Splits]:
    """Return settings of a system that leave nothing to chance, and the data."""
    settings = _settings(system, data)
    return settings, small_runs.splits_of(data, settings)


def _settings(system: str, data: Path) -> RunConfig:
    changes = ("train.optimizer.clip_norm=null", "model.dropout=0.0")
    if system == SMALL:
        return small_runs.config(*small_runs.WITHOUT_CHANCE, *changes)
    preset, *more = SYSTEMS[system]
    settings = small_runs.reduced(preset, data, *changes, *more, "data.evaluation.square=true").loaded.config
    fixed = [
        branch.model_copy(update={"matcher": branch.matcher.model_copy(update={"positive_fraction": None})})
        for branch in settings.branches
    ]
    return settings.model_copy(update={"branches": fixed})


def _doubled(batch: Batch) -> Batch:
    targets = tuple(replace(target, boxes=target.boxes.double()) for target in batch.targets)
    return Batch(batch.images, targets)


def _first_objects(target: Target, count: int) -> Target:
    return replace(target, boxes=target.boxes[:count], labels=target.labels[:count])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
