"""Signals: noted in the middle of a step, acted on at its end; a run that goes on equals one that was never stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_detr.errors import Stopped
from lora_detr.processes.stopping import StopSignals, named
from lora_detr.processes.world import World
from lora_detr.records.display import Silent
from lora_detr.runs import run
from lora_detr.tensor_files import read_tensors
from tests import small_runs
from tests.small_runs import read_lines

ALONE = World(0, 1, torch.device("cpu"))


class SignalAt(Silent):
    """Sends this process a signal at a step, or when an evaluation begins."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.at = number, step

    def step(self, done: int, epoch: int, loss: float) -> None:
        if done == self.at:
            os.kill(os.getpid(), self.number)


def outcome(directory: Path) -> tuple[object, ...]:
    """Return all that a resumed run must have in common with one that was never stopped."""
    last = max((directory / "checkpoints").glob("step-*"))
    losses = [(line["step"], line["loss_hex"]) for line in read_lines(directory / "metrics.jsonl")]
    with (directory / "results.csv").open(newline="") as file:
        kept = [{name: value for name, value in row.items() if name != "time"} for row in csv.DictReader(file)]
    tensors = [read_tensors(last / name)[0] for name in ("model.safetensors", "optim.safetensors")]
    bits = {name: value.numpy().tobytes() for part in tensors for name, value in part.items()}
    return last.name, losses, read_lines(directory / "log.txt"), kept, bits


# Inside an epoch, at its last step but one, at its end, and at the end of the run; the others are slow.
QUICK = (3, 5, 6, 12)


@pytest.mark.parametrize(
    "step", [step if step in QUICK else pytest.param(step, marks=pytest.mark.slow) for step in range(1, 13)]
)
def test_stopped_after_any_step_and_resumed_r2_p02(
    step: int, small_run: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    """Also behind the last step of an epoch, whose evaluation and log line then come with the resumed run."""
    resolved = small_runs.request(shapes_tiny)
    with pytest.raises(Stopped, match=f"stopped on SIGTERM at step {step}, which is saved") as caught:
        run.start(resolved, tmp_path / "run", None, False, SignalAt(signal.SIGTERM, step))
    assert caught.value.exit_code == 75
    ended = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (ended["code"], ended["step"], ended["last_checkpoint"]) == (75, step, f"step-{step:08d}")
    run.resume(tmp_path / "run", {}, Silent())
    assert outcome(tmp_path / "run") == outcome(small_run)


def test_stopped_in_an_evaluation_p02(
    small_run: Path, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation is given up at the next batch, and done again by the resumed run."""
    from lora_detr.training import trainer

    detect_all: Callable[..., None] = trainer.detect_all

    def interrupted(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        detect_all(*arguments, **options)

    monkeypatch.setattr(trainer, "detect_all", interrupted)
    with pytest.raises(Stopped, match="stopped on SIGUSR1 at step 6"):
        run.start(small_runs.request(shapes_tiny), tmp_path / "run", None, False, Silent())
    monkeypatch.setattr(trainer, "detect_all", detect_all)
    assert not (tmp_path / "run" / "results.csv").exists()
    run.resume(tmp_path / "run", {}, Silent())
    assert outcome(tmp_path / "run") == outcome(small_run)


def test_from_the_keyboard_once_p04(shapes_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped on SIGINT at step 2") as caught:
        run.start(small_runs.request(shapes_tiny), tmp_path / "run", None, False, SignalAt(signal.SIGINT, 2))
    assert caught.value.exit_code == 130


def test_from_the_keyboard_twice_p04() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopSignals() as signals:
        assert signals.agreed(ALONE) is None
        signal.raise_signal(signal.SIGTERM)
        assert signals.agreed(ALONE) is signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_to_be_requeued_is_stronger_than_to_be_interrupted() -> None:
    assert named([0.0, 0.0]) is None
    assert named([0.0, 2.0]) is signal.SIGINT
    assert named([1.0, 1.0]) is signal.SIGTERM
