"""The estimate of what a step costs leaves no trace in the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_detr.errors import WorkerError
from lora_detr.training import summary
from lora_detr.training.rehearsal import duration, rehearse
from lora_detr.training.run_directory import RunDirectory
from lora_detr.training.seeding import rng_state
from lora_detr.training.trainer import Trainer
from tests import small_runs
from tests.small_runs import Lines, read_lines


def trainer(data: Path, directory: Path, *overrides: str) -> Trainer:
    settings = small_runs.config(*overrides)
    splits = small_runs.splits_of(data, settings)
    model = settings.build_model(splits.categories.num_classes, load_weights=False)
    return Trainer(settings, splits, model, RunDirectory(directory), small_runs.ALONE, Lines())


def test_state_is_as_before_and_the_cost_is_plausible(shapes_tiny: Path, tmp_path: Path) -> None:
    one = trainer(shapes_tiny, tmp_path)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    random = rng_state()
    cost = rehearse(one)
    assert cost is not None
    assert 0 < cost.seconds < 60
    assert 1e8 < cost.peak_bytes < 1e11
    assert rng_state() == random
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert not any(tmp_path.iterdir())


def test_accumulated_passes_count(shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_detr.training.rehearsal._pass", lambda trainer, batch: 2.0)
    cost = rehearse(trainer(shapes_tiny, tmp_path, "train.accumulate=3"))
    assert cost is not None
    assert cost.seconds == 6.0
    assert cost.describe(10).startswith("about 60 s an epoch (6.00 s a step")


def test_a_run_with_an_estimate_equals_one_without(
    small_run: Path, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "WORTHWHILE_STEPS", 1)
    shown = Lines()
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=3", display=shown).directory
    assert any(line.startswith("time        about ") for line in shown.lines)
    losses = [record["loss_hex"] for record in read_lines(directory / "metrics.jsonl")]
    assert losses == [record["loss_hex"] for record in read_lines(small_run / "metrics.jsonl")][:3]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("[enforce] can't allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_p19_too_little_memory_is_named_before_the_run_starts(
    error: Exception, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr("lora_detr.training.rehearsal._pass", fail)
    monkeypatch.setattr(summary, "WORTHWHILE_STEPS", 1)
    with pytest.raises(WorkerError, match="out of memory") as caught:
        small_runs.train(shapes_tiny, tmp_path / "run")
    assert (caught.value.exit_code, caught.value.code) == (7, "P19")
    assert "--batch-size" in caught.value.remedy
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text
