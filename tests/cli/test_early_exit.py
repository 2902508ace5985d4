"""P08: no process of a run has fewer steps than the others, and one that leaves early ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_detr.data.order import EpochSampler
from tests.small_runs import SMALL

# Python imports it at every start: the process of the second rank leaves as if all were well, in its second step.
LEAVE = """
import os, sys

if os.environ.get("RANK") == "1":
    import lora_detr.training.step as step

    made = step.Stepper.__call__

    def leave(self, batches, number):
        if number == 1:
            sys.exit(0)
        return made(self, batches, number)

    step.Stepper.__call__ = leave
"""


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_five_images_make_equally_many_steps_p08(world_size: int, batch_size: int, drop_last: bool) -> None:
    batches = []
    for rank in range(world_size):
        sampler = EpochSampler(
            5,
            batch_size=batch_size,
            shuffle=True,
            rank=rank,
            world_size=world_size,
            seed=0,
            drop_last=drop_last,
        )
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1]) == sampler.batches_per_epoch
    assert len({len(own) for own in batches}) == 1
    for step in zip(*batches, strict=True):
        assert len({len(images) for images in step}) == 1
    if not drop_last:
        assert {image for own in batches for images in own for image in images} == set(range(5))


@pytest.mark.slow
def test_a_process_that_leaves_early_ends_the_run_p08(shapes_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAVE)
    source = str(Path(__file__).parents[2])
    options = ("--preset", SMALL, "--data", shapes_tiny, "--output-dir", "run", "--device", "cpu", "--nproc", 2)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lora_detr", "train", *map(str, options)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), source)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert "error[P0" in done.stderr
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 7
    assert time.monotonic() - started < 90
