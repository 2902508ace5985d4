"""The weight of the branches rises and falls over the run that is planned, also over one that is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.runs import run
from lora_detr.training.step import Stepper
from tests import small_runs
from tests.small_runs import Lines, read_lines

RAMPS = ("loss.branch.rise=0.5", "loss.branch.fall=0.25", "train.epochs=2", "train.log_every=1")


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of every step that is taken."""
    found: list[float] = []
    own = Stepper._forward_backward

    def noting(stepper: Stepper, *given: object) -> object:
        found.append(stepper.config.loss.branch.share(stepper.progress))
        return own(stepper, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "_forward_backward", noting)
    return found


def expected(steps: int) -> list[float]:
    return [min(1.0, step / (0.5 * steps), (steps - step) / (0.25 * steps)) for step in range(steps)]


def test_the_share_follows_the_steps_of_the_run(shapes_tiny: Path, tmp_path: Path, shares: list[float]) -> None:
    small_runs.train(shapes_tiny, tmp_path / "run", *RAMPS)
    assert len(shares) > 8
    assert shares == pytest.approx(expected(len(shares)))
    steps = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(steps) == len(shares)


def test_a_resumed_run_goes_on_where_it_was(shapes_tiny: Path, tmp_path: Path, shares: list[float]) -> None:
    small_runs.train(shapes_tiny, tmp_path / "run", *RAMPS, "train.epochs=1")
    half = len(shares)
    shares.clear()
    run.resume(tmp_path / "run", {"train.epochs": 2}, Lines())
    assert shares == pytest.approx(expected(2 * half)[half:])
