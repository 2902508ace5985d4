"""The small run that parts injure: its data, what it saves, and what two runs must have in common."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from lora_detr.checkpoints.checkpoint import LoadedCheckpoint, load_latest, resolve_checkpoint
from lora_detr.data.synthetic.sets import SHAPES, generate
from tests import small_runs
from tests.small_runs import read_lines
from tests.soak.harness import shared_folder

FOUR_STEPS = ("train.epochs=1", "train.max_steps=4", "train.save_every=2", "train.ema_decay=0.9")
LOGS = ("steps", "epochs", "results")
"""Parts of an outcome that are lines of logs."""


@cache
def data() -> Path:
    """Return a generated COCO folder of 12 training and 6 validation images of 112 pixels; not to be changed."""
    spec = replace(SHAPES, name="shapes-tiny", size=112, max_objects=8, min_scale=0.08)
    return generate(spec, shared_folder("data") / "shapes-tiny", train_images=12, val_images=6)


@cache
def finished() -> Path:
    """Return the folder of a finished run of four steps with averaged weights and two checkpoints; leave it alone."""
    return small_runs.train(data(), shared_folder("run") / "run", *FOUR_STEPS).directory


def own_checkpoints(folder: Path) -> Path:
    """Copy the checkpoints of the finished run into an empty folder and return their folder there."""
    return Path(shutil.copytree(finished() / "checkpoints", folder / "checkpoints"))


@cache
def saved() -> LoadedCheckpoint:
    """Return what the finished run saved last."""
    loaded, skipped = load_latest(finished() / "checkpoints")
    assert loaded is not None
    assert not skipped
    return loaded


def outcome(run: Path) -> dict[str, object]:
    """Return all that two runs with the same settings must have in common, bit for bit; no clock and no path."""
    last = resolve_checkpoint(run, "last")
    hashes = {path.name: _hash(path) for path in sorted(last.glob("*.safetensors"))}
    state = json.loads((last / "state.json").read_bytes())
    state["config"]["data"].pop("path")
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if name != "time"} for row in csv.DictReader(file)]
    steps = [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_lines(run / "metrics.jsonl")
    ]
    best = (run / "checkpoints" / "best").read_text(encoding="utf-8")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    return {
        **hashes,
        "state": state,
        "steps": steps,
        "epochs": read_lines(run / "log.txt"),
        "results": rows,
        "best": best,
        "checkpoints": names,
        "predictions": {path.name: _hash(path) for path in sorted((run / "eval").glob("predictions*"))},
    }


def assert_same(found: Path, expected: Path) -> None:
    """Assert that two runs have the same outcome; the message names what differs."""
    one, two = outcome(found), outcome(expected)
    differing = [key for key in two if one.get(key) != two[key]]
    assert not differing, f"{found.name} differs from {expected.name} in {', '.join(differing)}"


def in_child(action: Callable[[], None]) -> int:
    """Run something in a fork of this process, which imports nothing again, and return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
