"""Train every small system for the same number of steps, strip each, and write one table.

    python benchmarks/systems.py --data DIR --output runs/systems --steps 300

A system that has been trained already is not trained again, so the script can be stopped between two systems and
started again. Step times are measured at the end, all systems in turn in one process on the same batch, and given as
ratios to the first system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.data.loader import collate
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import read_splits, train_loader
from lora_detr.recipe.run_config import RunConfig
from lora_detr.training.optim import build_optimizer
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper, StepResult

SYSTEMS: dict[str, tuple[str, ...]] = {
    "Deformable-DETR": ("--preset", "deformable-tiny"),
    "LoRA, 1 branch": ("--preset", "deformable-tiny-lora3", "--aux", "1"),
    "LoRA, 3 branches": ("--preset", "deformable-tiny-lora3"),
    "FFN branches, 3": ("--preset", "deformable-tiny-ffn3"),
    "MS-DETR": ("--preset", "ms-detr-tiny"),
    "H-DETR (hybrid queries x6)": ("--preset", "deformable-tiny", "--hybrid", "6"),
    "DAC-DETR": ("--preset", "deformable-tiny", "--dac"),
    "Deformable-DETR++": ("--preset", "deformable-pp-tiny"),
    "LoRA on ++, 3 branches": ("--preset", "deformable-pp-tiny-lora3"),
    "Relation-DETR": ("--preset", "relation-tiny"),
    "LoRA on Relation-DETR, 1+3": ("--preset", "relation-tiny-lora3"),
}
STEPS_TIMED = 12


@dataclass(frozen=True)
class Row:
    """What is known of one system.

    Attributes:
        system: its name.
        command: that trained it.
        AP: on the validation split.
        AP50: likewise.
        step_ratio: time of a training step, as a multiple of the first system's.
        parameters: trained.
        stripped: parameters left for inference.
        identical: the stripped file predicts the same bits.
    """

    system: str
    command: str
    AP: float
    AP50: float
    step_ratio: float
    parameters: int
    stripped: int
    identical: bool


def train(options: Sequence[str], data: Path, steps: int, output: Path, threads: int, seed: int) -> None:
    """Train and strip one system in processes of their own, unless that is done already."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "lora_detr"]
    arguments = [*options, "--data", str(data), "--max-steps", str(steps), "--seed", str(seed)]
    arguments += ["--set", f"train.epochs={steps}", "--set", f"evaluation.every={steps}"]
    if output.exists() and not is_done(output, steps, seed):
        raise SystemExit(f"{output}: holds a run of other settings, or one that has not ended; remove it")
    if not output.exists():
        run([*command, "train", *arguments, "--output-dir", str(output)], environment)
    if not (output / "strip_report.json").is_file():
        run([*command, "strip", str(output)], environment)


def is_done(output: Path, steps: int, seed: int) -> bool:
    """Return whether a run ended well with these steps and this seed."""
    ended = output / "exit.json"
    if not ended.is_file() or json.loads(ended.read_text(encoding="utf-8"))["code"] != 0:
        return False
    config = open_run(output, "last").config.train
    return (config.max_steps, config.seed) == (steps, seed)


def run(command: Sequence[str], environment: dict[str, str]) -> None:
    """Run a command and fail with what it said if it does."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def step_seconds(runs: Sequence[Path], threads: int) -> list[float]:
    """Return the median seconds of a step of each run, all measured in turn on the same images."""
    torch.set_num_threads(threads)
    world = World.from_environment("cpu")
    ways: list[partial[StepResult]] = []
    for path in runs:
        seed_everything(0, 0)
        opened = open_run(path, "last")
        config: RunConfig = opened.config
        assert config.data.path is not None
        dataset = train_loader(read_splits(Path(config.data.path), config.data, None), config, world).dataset
        batch = collate([dataset.sample(i, 0) for i in range(config.train.batch_size)], config.data.size_divisor)
        model = opened.model.train()
        optimizer = build_optimizer(model, config.train.optimizer)
        ways.append(partial(Stepper(model, config.build_criterion(), optimizer, config, world), [batch], 0))
    return [timing.seconds for timing in interleaved(ways, STEPS_TIMED, warm_up=2)]


def row(system: str, options: Sequence[str], path: Path, ratio: float) -> Row:
    """Read what training and stripping wrote."""
    metrics = json.loads((path / "eval" / "metrics.json").read_text(encoding="utf-8"))
    strip = json.loads((path / "strip_report.json").read_text(encoding="utf-8"))
    values = metrics.get("values", metrics)
    model = open_run(path, "last").model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    identical = strip["largest_difference"] == 0 and len(set(strip["outputs_sha256"])) == 1
    command = f"loradetr train {' '.join(options)}"
    return Row(system, command, values["AP"], values["AP50"], ratio, trained, strip["parameters_after"], identical)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| system | command | AP | AP50 | step time | trained parameters | after strip | strip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.system} | `{one.command.removeprefix('loradetr train ')}` | {one.AP:.3f} | {one.AP50:.3f} "
        f"| {one.step_ratio:.2f} | {one.parameters / 1e6:.2f} M | {one.stripped / 1e6:.2f} M "
        f"| {'bit-identical' if one.identical else 'DIFFERS'} |"
        for one in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Train, strip, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO folder or YAML")
    parser.add_argument("--output", type=Path, default=Path("runs/systems"), help="one run directory a system")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="systems trained side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    paths = [given.output / f"{i:02d}" for i in range(len(SYSTEMS))]
    given.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [
            pool.submit(train, options, given.data, given.steps, path, given.threads, given.seed)
            for options, path in zip(SYSTEMS.values(), paths, strict=True)
        ]
        for job in jobs:
            job.result()
    seconds = step_seconds(paths, given.threads)
    rows = [
        row(system, options, path, one / seconds[0])
        for (system, options), path, one in zip(SYSTEMS.items(), paths, seconds, strict=True)
    ]
    print(table(rows))
    print(f"{given.steps} steps, seed {given.seed}, {given.threads} thread(s), first system {seconds[0]:.3f} s a step")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
