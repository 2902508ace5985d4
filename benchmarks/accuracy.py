"""Accuracy after a given time of training: our tiny presets, and Hugging Face's Deformable DETR of the same size.

    python benchmarks/accuracy.py --data data/mine --seconds 600 --threads 2
    python benchmarks/accuracy.py --data data/mine --system deformable-tiny-lora3 --seeds 0 1 2

The time is that of optimiser steps, reading images included; starting and the evaluation at the end do not count.
Each system has a process of its own, one after the other, so that nothing shares the cores. Our schedule is given in
steps, so a short training tells first how many fit; a row has the seconds that the steps took in the end. Hugging
Face's schedule is given in seconds. It is trained by the settings of our preset without branches
(`huggingface_training.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, give, parse
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import read_splits
from lora_detr.records.display import Silent
from lora_detr.runs.request import Request, Resolved, resolve
from lora_detr.runs.run import start

THEIRS = "huggingface"
PLAIN = "deformable-tiny"
SYSTEMS = (PLAIN, "deformable-tiny-lora3", THEIRS)
# Steps of the training that tells how many fit; the first ones, which are slow, do not count.
TRIAL, WARM_UP = 60, 10


class Watch(Silent):
    """Notes when the steps of a training were done.

    Attributes:
        times: on the clock, after each step.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, done: int, epoch: int, loss: float) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def seconds_a_step(self, first: int = 0) -> float:
        """Return the mean time between steps, those before ``first`` left out."""
        return (self.times[-1] - self.times[first]) / (len(self.times) - 1 - first)


def settings(system: str, data: Path, seed: int, overrides: list[str], steps: int | None = None) -> Resolved:
    """Return what a system is trained by; evaluation at the end only.

    Args:
        system: a preset of ours.
        data: COCO folder.
        seed: of everything random.
        overrides: more settings, as ``--set`` takes them.
        steps: of the whole training; None where nothing is trained by our schedule.
    """
    long = 1_000_000
    values = [f"train.seed={seed}", "train.device=cpu", f"train.epochs={long}", f"evaluation.every={long}", *overrides]
    values += [] if steps is None else [f"train.max_steps={steps}"]
    return resolve(Request(preset=system, data=data, overrides=tuple(values)))


def ours(system: str, given: argparse.Namespace) -> Row:
    """Train a preset for as many steps as fit, and evaluate it."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Watch()
        short = settings(system, given.data, given.seed, given.set, given.trial)
        start(short, Path(folder) / "trial", None, False, trial)
        steps = max(2, int(given.seconds / trial.seconds_a_step(min(WARM_UP, given.trial - 2))))
        watch = Watch()
        resolved = settings(system, given.data, given.seed, given.set, steps)
        finished = start(resolved, Path(folder) / "run", None, False, watch)
    assert finished.metrics is not None
    # From the end of the first step on; that one, which also starts the readers, counts as a mean one.
    seconds = steps * watch.seconds_a_step()
    images = resolved.loaded.config.train.batch_size
    return _row(system, given.seed, steps, images, seconds, finished.metrics.values)


def theirs(given: argparse.Namespace) -> Row:
    """Train Hugging Face's detector for the time, and evaluate it."""
    from benchmarks.huggingface_training import train_theirs  # ours can be measured without their package

    config = settings(PLAIN, given.data, given.seed, given.set).loaded.config
    splits = read_splits(given.data, config.data)
    trained = train_theirs(config, splits, given.seconds, World.from_environment("cpu"))
    return _row(THEIRS, given.seed, trained.steps, config.train.batch_size, trained.seconds, trained.metrics.values)


def _row(system: str, seed: int, steps: int, images: int, seconds: float, metrics: dict[str, float]) -> Row:
    row: dict[str, str | int | float] = {"system": system, "seed": seed, "steps": steps, "seconds": seconds}
    return {**row, "images_a_second": steps * images / seconds, "AP": metrics["AP"], "AP50": metrics["AP50"]}


def alone(system: str, seed: int, given: argparse.Namespace) -> Row:
    """Measure one system in a new process.

    Raises:
        SystemExit: it failed; with what it said.
    """
    options = ["--data", str(given.data), "--seconds", str(given.seconds), "--trial", str(given.trial)]
    options += [] if given.threads is None else ["--threads", str(given.threads)]
    options += [text for override in given.set for text in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", *options, "--alone", system, str(seed)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{system}, seed {seed}: failed with exit code {done.returncode}; see above")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO folder with a validation split")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each")
    parser.add_argument("--system", action="append", metavar="PRESET", help=f"or {THEIRS}; repeatable; default: three")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all systems")
    parser.add_argument("--trial", type=int, default=TRIAL, help="steps that tell how many fit")
    parser.add_argument("--alone", nargs=2, metavar=("SYSTEM", "SEED"), help=argparse.SUPPRESS)
    given = parse(parser)
    given.data = given.data.resolve()
    if given.alone is not None:
        system, given.seed = given.alone[0], int(given.alone[1])
        print(json.dumps(theirs(given) if system == THEIRS else ours(system, given)))
        return
    rows = [alone(system, seed, given) for seed in given.seeds for system in given.system or SYSTEMS]
    del given.alone
    give(rows, given)


if __name__ == "__main__":
    main()
