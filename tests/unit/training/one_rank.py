"""One rank of ``test_distributed.py``: ``python -m tests.unit.training.one_rank DATA OUT CASE...``.

A case is one image for each rank, such as ``0,-3``; a minus sign removes the objects of an image. For every case the
rank trains a new model for one step and writes the averaged gradients, the weights and the loss.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from lora_detr.structures import Batch
from lora_detr.tensor_files import write_tensors
from lora_detr.training.data import Splits
from lora_detr.training.distributed import World
from tests import small_runs

SETTINGS = small_runs.config(*small_runs.WITHOUT_CHANCE, "train.optimizer.clip_norm=null")


def batch_of(splits: Splits, names: list[str]) -> Batch:
    """Return the images of the given places; those with a minus sign without their objects."""
    batch = small_runs.batch_of(splits, SETTINGS, [int(name.lstrip("-")) for name in names])
    targets = tuple(
        replace(target, boxes=target.boxes[:0], labels=target.labels[:0]) if name.startswith("-") else target
        for name, target in zip(names, batch.targets, strict=True)
    )
    return replace(batch, targets=targets)


def main(data: str, out: str, *cases: str) -> None:
    """Run one rank."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    splits = small_runs.splits_of(Path(data), SETTINGS)
    for case in cases:
        stepper = small_runs.stepper(SETTINGS, splits.categories.num_classes, world)
        result = stepper([batch_of(splits, [case.split(",")[world.rank]])], 0)
        tensors = {"loss": torch.tensor(result.loss, dtype=torch.float64)}
        for name, parameter in stepper.model.named_parameters():
            if parameter.grad is not None:
                tensors[f"gradient/{name.removeprefix('module.')}"] = parameter.grad
            tensors[f"weight/{name.removeprefix('module.')}"] = parameter.data
        write_tensors(Path(out) / f"{case}-rank{world.rank}.safetensors", tensors)
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
