"""Measure what `--recompute` saves and what it costs, and print a table.

    python benchmarks/recompute.py --preset deformable-lora3 --size 320 --batch 2

Memory is what a process of its own takes for its first step, above what it held before, so that nothing of another
variant is in it. Step times are measured in one process, all variants in turn on the same images, and given as ratios
to the first. Images and weights are random: neither changes what a step costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from lora_detr.config.load import load_config
from lora_detr.config.run import RecomputedPart, RunConfig
from lora_detr.structures import Batch, Images, Target
from lora_detr.training.distributed import World
from lora_detr.training.optim import build_optimizer
from lora_detr.training.recompute import recompute
from lora_detr.training.rehearsal import PAGES
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper

VARIANTS: tuple[tuple[RecomputedPart, ...], ...] = (
    (),
    ("backbone",),
    ("encoder",),
    ("decoder",),
    ("backbone", "encoder", "decoder"),
)
CLASSES, OBJECTS = 10, 8


def batch_of(size: int, count: int) -> Batch:
    """Return ``count`` square images of noise with objects at random places."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for image_id in range(count):
        centre = 0.25 + 0.5 * torch.rand(OBJECTS, 2, generator=generator)
        extent = 0.1 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        targets.append(Target(torch.cat((centre, extent), -1), labels, image_id, (size, size)))
    pixels = torch.randn(count, 3, size, size, generator=generator)
    padding = torch.zeros(count, size, size, dtype=torch.bool)
    return Batch(Images(pixels, padding, torch.tensor([[size, size]] * count)), tuple(targets))


def stepper_of(preset: str, parts: Sequence[RecomputedPart]) -> Stepper:
    """Return a stepper over a new model of a preset, from random weights."""
    overrides = ["model.backbone.weights=none", "model.backbone.norm=frozen-batch", "data.num_classes=auto"]
    config = load_config(RunConfig, preset=preset, overrides=overrides).config
    seed_everything(0)
    model = config.build_model(CLASSES, load_weights=False).train()
    recompute(model.detector, parts)
    optimizer = build_optimizer(model, config.train.optimizer)
    return Stepper(model, config.build_criterion(), optimizer, config, World.from_environment("cpu"))


def step_bytes(preset: str, parts: Sequence[RecomputedPart], batch: Batch) -> int:
    """Return how far memory rises in the first step of this process, gradients and moments included."""
    stepper = stepper_of(preset, parts)
    before = int(PAGES.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    stepper([batch], 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def step_seconds(preset: str, batch: Batch, steps: int) -> list[float]:
    """Return the median seconds of a step of each variant, all measured in turn."""
    steppers = [stepper_of(preset, parts) for parts in VARIANTS]
    seconds: list[list[float]] = [[] for _ in steppers]
    for step in range(steps + 1):
        for one, stepper in zip(seconds, steppers, strict=True):
            start = time.perf_counter()
            stepper([batch], step)
            if step:  # the first one warms up
                one.append(time.perf_counter() - start)
    return [statistics.median(one) for one in seconds]


def measured_alone(given: argparse.Namespace, parts: Sequence[str]) -> int:
    """Return ``step_bytes`` of a process of its own."""
    command = [sys.executable, __file__, "--preset", given.preset, "--size", str(given.size)]
    command += ["--batch", str(given.batch), "--alone", ",".join(parts)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deformable-lora3")
    parser.add_argument("--size", type=int, default=320, help="both sides of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed, of each variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batch = batch_of(given.size, given.batch)
    if given.alone is not None:
        parts = next(parts for parts in VARIANTS if ",".join(parts) == given.alone)
        print(json.dumps(step_bytes(given.preset, parts, batch)))
        return
    memory = [measured_alone(given, parts) for parts in VARIANTS]
    seconds = step_seconds(given.preset, batch, given.steps)
    print("| recomputed | memory of a step | time of a step |")
    print("|---|---|---|")
    for parts, held, one in zip(VARIANTS, memory, seconds, strict=True):
        print(f"| {', '.join(parts) or 'nothing'} | {held / 1e9:.2f} GB | {one / seconds[0]:.2f} |")
    print(
        f"{given.preset}, {given.batch} x {given.size} x {given.size}, {given.threads} thread(s), "
        f"{seconds[0]:.2f} s a step without"
    )


if __name__ == "__main__":
    main()
