"""Signals at any instant, and ranks and readers of images that are lost: how soon and how a command ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from lora_detr import errors
from lora_detr.checkpoints.checkpoint import load_latest
from lora_detr.json_value import JSON
from tests.commands import end, ended_at_last, family, is_gone, ranks, signal_all, start, wait_for_steps
from tests.small_runs import SMALL, read_lines
from tests.soak import runs
from tests.soak.faulty import RAISED, READERS, Fault
from tests.soak.harness import Part, shared_folder

LIMIT = 10  # seconds from a fault to the end of everything
SILENCE = 5  # seconds that a rank, or a reader of images, may be silent
PHASES = ("loading", "step", "saving", "evaluation", "any")
EPOCHS = 3
TRAIN_IMAGES = 12
ONE = ("--device", "cpu", "--workers", "2")
TWO = ("--device", "cpu", "--nproc", "2")


def sigterm(whole: bool, trial: int, folder: Path) -> Mapping[str, JSON]:
    """P02, P03: SIGTERM in a phase of choice, to the main process of one with readers or to all processes of two ranks.

    The command ends with 75 within the limit, leaves nobody, and saves once; the same command again, with
    --auto-resume, makes it the run that nothing disturbed.
    """
    options = TWO if whole else ONE
    expected = _undisturbed(options)
    draw, phase, run = random.Random(trial), PHASES[trial % len(PHASES)], folder / "run"
    with ended_at_last(_train(run, *options, "--auto-resume")) as process:
        _wait_for(phase, process, run, draw, expected)
        before = _steps(run)
        began = time.monotonic()
        if whole:
            signal_all(process.pid, signal.SIGTERM)
        else:
            os.kill(process.pid, signal.SIGTERM)
        code, _, err = end(process)
        seconds = time.monotonic() - began
        assert is_gone(process.pid, LIMIT - seconds), f"in {phase}: left behind {family(process.pid)}"
    ended = _exit(run)
    logged = len(_logged(run))
    if code == 0 or ended.get("code") == 0:  # too late: the run was done
        assert logged == _length(expected), f"in {phase}: code {code} after step {logged}\n{err}"
        runs.assert_same(run, expected.run)
        return {"phase": f"{phase}, done", "seconds": round(seconds, 2), "step": logged}
    assert code == 75, f"in {phase}, after step {logged}: code {code}\n{err}"
    assert seconds <= LIMIT, f"in {phase}, after step {logged}: {seconds:.1f} s"
    step = 0
    if logged or ended:
        assert ended.get("code") == 75, f"in {phase}, after step {logged}: exit.json says {ended}"
        step = int(str(ended["step"]))
        assert ended["last_checkpoint"] == f"step-{step:08d}", f"in {phase}: exit.json says {ended}"
        more = _steps(run) - before - _regular(options)
        assert more <= {step}, f"in {phase}: saved {sorted(more)}, ended at {step}"
        assert step in _steps(run)
    with ended_at_last(_train(run, *options, "--auto-resume")) as process:
        code, _, err = end(process)
        assert code == 0, f"in {phase}, at step {step}: started again, it ends with {code}\n{err}"
    found, wanted = runs.outcome(run), runs.outcome(expected.run)
    differing = [key for key in wanted if key != "checkpoints" and found[key] != wanted[key]]
    assert not differing, f"in {phase}, at step {step}: differs from the undisturbed run in {differing}"
    return {"phase": phase, "seconds": round(seconds, 2), "step": step}


def lost_rank(number: signal.Signals, trial: int, folder: Path) -> Mapping[str, JSON]:
    """P06, P07: a rank is killed, or stopped so that it is silent, after a random step."""
    draw, run = random.Random(trial), folder / "run"
    rank, step = draw.randrange(2), draw.randrange(1, 2 * EPOCHS)
    options = (*TWO, "--save-every", 2, "--set", f"train.rank_timeout={SILENCE}", "--set", "train.max_steps=400")
    with ended_at_last(_train(run, *options, "--epochs", 200)) as process:
        wait_for_steps(run, step)
        time.sleep(draw.random() * 0.3)
        began = time.monotonic()
        os.kill(ranks(process.pid)[rank], number)
        said = f"rank {rank} (process" if number is signal.SIGKILL else f"rank {rank} gives no sign of life"
        limit = LIMIT if number is signal.SIGKILL else SILENCE + 5
        seconds = _ends(process, 7, said, began, limit)
    return {"rank": rank, "seconds": round(seconds, 2), **_verified(run)}


def failing_rank(kinds: Sequence[str], trial: int, folder: Path) -> Mapping[str, JSON]:
    """P06, P08: a rank raises at a random step, or exits as if all were done; code and number are told."""
    draw, run = random.Random(trial), folder / "run"
    kind, rank, step = kinds[trial % len(kinds)], draw.randrange(2), draw.randrange(2 * EPOCHS)
    fault = Fault(kind, rank, step, str(folder / "note"))
    options = (*TWO, "--save-every", 1, "--set", f"train.rank_timeout={SILENCE}")
    raised = RAISED.get(kind)
    code = 7 if raised is None else raised.exit_code if isinstance(raised, errors.LoraDetrError) else 1
    with ended_at_last(_train(run, *options, module="tests.soak.faulty", **fault.variables())) as process:
        # The first rank tells of itself without a number.
        said = f"rank {rank}" if rank or raised is None else str(raised)
        seconds = _ends(process, code, said, None, LIMIT, folder / "note")
    return {"kind": kind, "rank": rank, "at": step, "seconds": round(seconds, 2), **_verified(run)}


def lost_reader(trial: int, folder: Path) -> Mapping[str, JSON]:
    """P10: a process that reads images is killed, ends or hangs at a random image; the image is named."""
    draw, run = random.Random(trial), folder / "run"
    kind, image, epoch = READERS[trial % len(READERS)], draw.randrange(TRAIN_IMAGES), draw.randrange(EPOCHS)
    note = folder / "note"
    fault = Fault(kind, image, epoch, str(note), timeout=SILENCE)
    with ended_at_last(_train(run, *ONE, module="tests.soak.faulty", **fault.variables())) as process:
        limit = SILENCE + 5 if kind == "hang" else LIMIT
        seconds = _ends(process, 7, lambda: note.read_text(encoding="utf-8").split()[1], None, limit, note)
    return {"kind": kind, "epoch": epoch, "seconds": round(seconds, 2), **_verified(run)}


def _ends(
    process: subprocess.Popen[str],
    code: int,
    said: str | Callable[[], str],
    began: float | None,
    limit: float,
    note: Path | None = None,
) -> float:
    """Assert how a command ends, what it says of it, and that all of it is gone in time; return the seconds it took."""
    found, _, err = end(process)
    over = time.monotonic()
    if note is not None:
        assert note.exists(), f"the fault did not happen; code {found}\n{err}"
        began = float(note.read_text(encoding="utf-8").split()[0])
    assert began is not None
    text = said if isinstance(said, str) else said()
    assert found == code, f"code {found}, expected {code}\n{err}"
    assert text in err, f"{text!r} is not said\n{err}"
    assert over - began <= limit, f"{over - began:.1f} s\n{err}"
    assert is_gone(process.pid, began + limit - over), f"left behind {family(process.pid)}\n{err}"
    return over - began


class _Undisturbed:
    """A run that nothing disturbed, and how long its parts took, as far as that can be seen from outside."""

    def __init__(self, options: Sequence[str]) -> None:
        self.run = shared_folder("undisturbed") / "run"
        began = time.monotonic()
        with ended_at_last(_train(self.run, *options)) as process:
            _wait_for_handler(process)
            handled = time.monotonic()
            wait_for_steps(self.run, 1)
            self.loading = time.monotonic() - handled
            code, _, err = end(process)
        assert code == 0, err
        self.total = time.monotonic() - began
        self.step = (self.total - self.loading) / _length(self)


@cache
def _undisturbed(options: tuple[str, ...]) -> _Undisturbed:
    return _Undisturbed(options)


def _train(run: Path, *options: object, module: str = "lora_detr", **variables: str) -> subprocess.Popen[str]:
    common = ("--preset", SMALL, "--data", runs.data(), "--output-dir", run, "--set", f"train.epochs={EPOCHS}")
    return start("train", *common, *options, module=module, **variables)


def _wait_for(
    phase: str, process: subprocess.Popen[str], run: Path, draw: random.Random, expected: _Undisturbed
) -> None:
    """Return at a random instant of a phase; before it takes signals Python itself ends at one, and nothing is lost."""
    _wait_for_handler(process)
    length = _length(expected)
    if phase == "any":
        time.sleep(draw.random() * expected.total * 0.9)
    elif phase == "loading":
        time.sleep(draw.random() * expected.loading)
    elif phase == "step":
        wait_for_steps(run, draw.randrange(1, length))
        time.sleep(draw.random() * expected.step)
    else:
        epoch = draw.randrange(1, EPOCHS + 1)
        wait_for_steps(run, length // EPOCHS * epoch)
        if phase == "saving":
            saving = run / "checkpoints"
            while process.poll() is None and not any(saving.glob(".tmp-*")) and len(_steps(run)) < min(epoch, 2):
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
        else:
            time.sleep(draw.random() * 0.3)


def _wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Wait until a process does something of its own at SIGTERM."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                return
        time.sleep(0.01)
    raise AssertionError("the command takes no signals")


def _length(expected: _Undisturbed) -> int:
    return len(_logged(expected.run))


def _logged(run: Path) -> list[dict[str, JSON]]:
    return read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []


def _steps(run: Path) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit()}


def _regular(options: Sequence[str]) -> set[int]:
    """Return the steps that are saved anyway: those that end an epoch."""
    count = _length(_undisturbed(tuple(options))) // EPOCHS
    return {count * epoch for epoch in range(1, EPOCHS + 1)}


def _exit(run: Path) -> Mapping[str, JSON]:
    path = run / "exit.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # type: ignore[no-any-return]


def _verified(run: Path) -> Mapping[str, JSON]:
    """Return the step of the newest checkpoint, 0 where there is none yet; none may be damaged."""
    if not _steps(run):
        return {"saved": 0}
    loaded, skipped = load_latest(run / "checkpoints")
    assert loaded is not None
    assert not skipped, f"damaged: {skipped}"
    return {"saved": loaded.step}


PARTS = (
    Part("sigterm-process", 50, 0, partial(sigterm, False), "SIGTERM to a process with two readers, at any instant"),
    Part("sigterm-group", 50, 0, partial(sigterm, True), "SIGTERM to all processes of two ranks, at any instant"),
    Part("rank-killed", 20, 0, partial(lost_rank, signal.SIGKILL), "SIGKILL of a rank: 7, named, nobody left"),
    Part("rank-stopped", 20, 0, partial(lost_rank, signal.SIGSTOP), "SIGSTOP of a rank: 7, named, nobody left"),
    Part("rank-raises", 20, 1, partial(failing_rank, tuple(RAISED)), "a rank raises: its code, named, nobody left"),
    Part("rank-exits", 20, 0, partial(failing_rank, ("exit",)), "a rank exits too soon: 7, named, nobody left"),
    Part("worker-killed", 20, 1, lost_reader, "a reader of images dies or hangs: 7, the image named, nobody left"),
)
