"""Processes that are killed or asked to end, and what the run is afterwards: the same as one that was left alone."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.atomic_files import TEMPORARY
from lora_detr.checkpoints import checkpoint
from lora_detr.checkpoints.checkpoint import (
    best_step,
    clean_stale,
    load_checkpoint,
    load_latest,
    prune,
    resolve_checkpoint,
    save_checkpoint,
    set_best,
)
from lora_detr.errors import ConfigError, Stopped
from lora_detr.json_value import JSON
from lora_detr.records.display import Silent
from lora_detr.runs import run
from tests import small_runs
from tests.soak import runs
from tests.soak.harness import Part, shared_folder

PHASES = ("between", "encode", "model", "optimizer", "ema", "state", "manifest", "verify", "publish", "best", "prune")
RESUMES, KILLS = 25, 5
FEW_RESUMES, FEW_KILLS = 3, 2
"""Those of trial 0, which the default test run takes."""


def kill_while_saving(trial: int, folder: Path) -> Mapping[str, JSON]:
    """P01: a child saves step after step and is killed, in a phase of choice or at any instant.

    Nothing that was saved is lost, so that at most the interval under way is repeated; nothing half written is left.
    """
    draw = random.Random(trial)
    _save(folder, 1)
    set_best(folder, 1)
    shared = mmap.mmap(-1, 16)  # byte 0: the phase; bytes 8 to 15: the last step that was saved
    _note_saved(shared, 1)
    child = runs.in_child(lambda: _save_for_ever(folder, shared))
    wanted = trial % (len(PHASES) + 1)
    if wanted < len(PHASES):
        _wait_within(shared, wanted, draw.random())
    else:
        time.sleep(draw.random() * 0.3)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
    phase, done = PHASES[shared[0]], int.from_bytes(shared[8:16], "little")
    left = len(list(folder.glob(f"{TEMPORARY}*")))
    clean_stale(folder)
    names = {path.name for path in folder.iterdir()}
    stale = [name for name in names if name.startswith(TEMPORARY) or name.endswith(".replaced")]
    assert not stale, f"left behind by a kill in {phase}: {stale}"
    loaded, skipped = load_latest(folder)
    assert loaded is not None, f"no checkpoint after a kill in {phase}"
    assert not skipped, f"damaged after a kill in {phase}: {skipped}"
    assert done <= loaded.step <= done + 1, f"step {done} was saved, {loaded.step} found after a kill in {phase}"
    for name, tensor in _weights(loaded.step).items():
        assert torch.equal(loaded.model[name], tensor), f"{name} is not of step {loaded.step}"
    best = load_checkpoint(resolve_checkpoint(folder, "best"), with_optimizer=True)
    assert best.step == best_step(folder)
    assert len(names) <= 5, f"too many left: {sorted(names)}"
    return {"phase": phase, "step": loaded.step, "temporaries": left}


def chained_resumes(trial: int, folder: Path) -> Mapping[str, JSON]:
    """S07: a run that is stopped after each step and resumed equals one that was left alone, and grows no larger."""
    resumes = FEW_RESUMES if trial == 0 else RESUMES
    length = (f"train.max_steps={resumes + 1}", "train.epochs=9", "evaluation.every=3")
    overrides = (f"train.seed={trial}", "train.save_every=1", *length)
    expected = small_runs.train(runs.data(), folder / "alone", *overrides).directory
    _stopped(lambda: run.start(small_runs.request(runs.data(), *overrides), folder / "run", None, False, StopNow()))
    # The moments of the optimiser are there from the first step on, so one checkpoint tells how large one is.
    sizes = [_bytes(resolve_checkpoint(folder / "run", "last"))]
    entries = []
    for _ in range(resumes - 1):
        _stopped(lambda: run.resume(folder / "run", {}, StopNow()))
        sizes.append(_bytes(resolve_checkpoint(folder / "run", "last")))
        entries.append(len(list((folder / "run").rglob("*"))))
    run.resume(folder / "run", {}, Silent())
    runs.assert_same(folder / "run", expected)
    assert max(sizes) - min(sizes) < 0.02 * min(sizes), f"checkpoints grow: {min(sizes)} to {max(sizes)} bytes"
    # Each evaluation may add `best` and its files once; whatever is there at the end is there in both.
    one, two = _entries(folder / "run"), _entries(expected)
    assert one == two, f"other files than in a run left alone: {sorted(one ^ two)}"
    grown = _bytes(folder / "run") - (folder / "run" / "command.txt").stat().st_size
    alone = _bytes(expected) - (expected / "command.txt").stat().st_size
    assert abs(grown - alone) < 0.01 * alone, f"{grown} bytes, {alone} in a run left alone"
    return {"resumes": resumes, "bytes": grown, "bytes_alone": alone, "most_entries": max(entries)}


def random_kills(trial: int, folder: Path) -> Mapping[str, JSON]:
    """R8: a run that is killed at random instants and started again each time equals one that was left alone."""
    draw = random.Random(trial)
    overrides = (f"train.seed={trial % 2}", "train.save_every=1", "train.ema_decay=0.9")
    expected, seconds = _left_alone(overrides)

    def auto_resume() -> None:
        try:
            run.start(
                small_runs.request(runs.data(), *overrides), folder / "run", None, False, Silent(), auto_resume=True
            )
        except ConfigError as error:  # killed behind the last save
            if "has done all" not in error.message:
                raise

    steps: list[int] = []
    kills = 0
    while True:
        child = runs.in_child(auto_resume)
        if kills < (FEW_KILLS if trial == 0 else KILLS):
            time.sleep(draw.random() * seconds * 0.25)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, f"the run failed after {kills} kills, at steps {steps}"
            break
        kills += 1
        steps.append(_last_step(folder / "run" / "checkpoints"))
    runs.assert_same(folder / "run", expected)
    return {"kills": kills, "seconds_alone": round(seconds, 2), "at_steps": "-".join(map(str, steps))}


def damaged_tails(trial: int, folder: Path) -> Mapping[str, JSON]:
    """S07: a run is resumed whose logs end as a power failure leaves them; only lines of these logs may be missing."""
    draw = random.Random(trial)
    source = runs.finished()
    broken = Path(shutil.copytree(source, folder / "run"))
    newest = resolve_checkpoint(broken, "last")
    shutil.rmtree(newest)
    (broken / "checkpoints" / "best").unlink()
    damaged = 0
    for path in sorted(path for path in broken.rglob("*") if path.is_file() and "checkpoints" not in path.parts):
        data = path.read_bytes()
        kept = data[: draw.randrange(len(data) + 1)]
        lost = len(data) - len(kept)
        tails = (b"", bytes(lost), draw.randbytes(lost), bytes(draw.randrange(4097)))
        way = draw.randrange(len(tails) + 1)
        if way < len(tails):
            path.write_bytes((data if way == 3 else kept) + tails[way])
            damaged += 1
    settings = small_runs.request(runs.data(), *runs.FOUR_STEPS)
    run.start(settings, broken, None, False, Silent(), auto_resume=True)
    found, expected = runs.outcome(broken), runs.outcome(source)
    differing = [key for key in expected if found[key] != expected[key] and key not in runs.LOGS]
    assert not differing, f"a resume beside damaged logs differs in {', '.join(differing)}"
    for log in runs.LOGS:
        assert _in_order(found[log], expected[log]), f"{log}: other lines than those of a run left alone"
    lines = sum(len(found[log]) for log in runs.LOGS)  # type: ignore[arg-type, misc]
    return {"damaged": damaged, "lines": lines}


def _in_order(found: Any, expected: Any) -> bool:
    """Return whether all lines are among the expected ones, in their order, and the last one is there."""
    remaining = iter(expected)
    return all(line in remaining for line in found) and found[-1:] == expected[-1:]


class StopNow(Silent):
    """Asks its own process to end after the first step, as a scheduler does."""

    def step(self, done: int, epoch: int, loss: float) -> None:
        """Send the signal."""
        os.kill(os.getpid(), signal.SIGTERM)


class Clock(Silent):
    """Notes when training begins, behind all imports."""

    began = 0.0

    def begin(self, total: int, done: int) -> None:
        """Note the time."""
        self.began = time.monotonic()


def _stopped(action: Callable[[], object]) -> None:
    with pytest.raises(Stopped):
        action()


def _weights(step: int) -> dict[str, Tensor]:
    """Return weights of the size of the finished run's that tell which step they are of."""
    return {**runs.saved().model, "step": torch.full((3,), float(step))}


def _save(folder: Path, step: int) -> None:
    saved = runs.saved()
    save_checkpoint(
        folder,
        step=step,
        model=_weights(step),
        optimizer=saved.optimizer,
        ema=saved.ema,
        state=saved.state,
        facts={"world_size": 1},
    )


def _save_for_ever(folder: Path, shared: mmap.mmap) -> None:
    """Save steps, each third one twice, every second one the best; keep two. Runs in a child only, which it changes."""
    _tell_phases(shared)
    for step in range(2, 1_000_000):
        for _ in range(2 if step % 3 == 0 else 1):
            _save(folder, step)
        _note_saved(shared, step)
        shared[0] = PHASES.index("between")
        if step % 2:
            shared[0] = PHASES.index("best")
            set_best(folder, step)
        shared[0] = PHASES.index("prune")
        prune(folder, keep_last=2, newest=step)
        shared[0] = PHASES.index("between")


def _note_saved(shared: mmap.mmap, step: int) -> None:
    shared[8:16] = step.to_bytes(8, "little")


def _tell_phases(shared: mmap.mmap) -> None:
    """Let the functions that a save is made of say that they begin."""

    def telling(name: str, phase: Callable[..., str]) -> None:
        function: Callable[..., Any] = getattr(checkpoint, name)

        def told(*arguments: Any, **options: Any) -> Any:
            shared[0] = PHASES.index(phase(*arguments))
            return function(*arguments, **options)

        setattr(checkpoint, name, told)

    files = {"model.safetensors": "model", "optim.safetensors": "optimizer", "ema.safetensors": "ema"}
    others = {"state.json": "state", "MANIFEST.json": "manifest"}
    telling("encode_tensors", lambda *_: "encode")
    telling("write_new", lambda path, _: {**files, **others}[path.name])
    telling("_verify_written", lambda _: "verify")
    telling("_publish", lambda *_: "publish")


def _wait_within(shared: mmap.mmap, phase: int, fraction: float) -> None:
    """Return when so much of a phase is over as it took the time before; sleeping would be too coarse."""
    _wait_until(shared, lambda now: now != phase)
    _wait_until(shared, lambda now: now == phase)
    began = time.monotonic()
    _wait_until(shared, lambda now: now != phase)
    seconds = time.monotonic() - began
    _wait_until(shared, lambda now: now == phase)
    end = time.monotonic() + fraction * seconds
    while time.monotonic() < end:
        pass


def _wait_until(shared: mmap.mmap, condition: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition(shared[0]):
        assert time.monotonic() < deadline, f"the child stays in {PHASES[shared[0]]}"


@cache
def _left_alone(overrides: tuple[str, ...]) -> tuple[Path, float]:
    """Return a finished run that nothing disturbed, and its seconds; what it imports is there for later children."""
    folder = shared_folder("alone")
    settings = small_runs.request(runs.data(), *overrides)
    clock = Clock()
    run.start(settings, folder / "run", None, False, clock)
    return folder / "run", time.monotonic() - clock.began


def _last_step(checkpoints: Path) -> int:
    steps = [int(path.name[5:13]) for path in checkpoints.glob("step-*")]
    return max(steps, default=0)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


PARTS = (
    Part("kill-while-saving", 200, 4, kill_while_saving, "SIGKILL while checkpoints are saved: none of them is lost"),
    Part("resumes", 41, 1, chained_resumes, f"{RESUMES} resumes of one run, a step each: bitwise equal, no larger"),
    Part("random-kills", 20, 1, random_kills, f"up to {KILLS} SIGKILLs of one run at random instants: bitwise equal"),
    Part("damaged-tails", 100, 2, damaged_tails, "logs cut, zeroed or overwritten at their end: bitwise equal"),
)
