"""The estimate of what a step costs leaves no trace in the run, and comes close; too little memory has a name."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.checkpoint import load_latest
from lora_detr.errors import WorkerError
from lora_detr.processes.faults import report_out_of_memory
from lora_detr.processes.world import World
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import rehearsal
from lora_detr.runs.rehearsal import PAGES, StepCost, duration, rehearse
from lora_detr.structures import Batch, Images
from lora_detr.training.seeding import rng_state
from lora_detr.training.step import Stepper, StepResult
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
    assert 1e8 < cost.peak < 1e11
    # Weights, gradients and two moments, four bytes a number; buffers come on top.
    numbers = sum(parameter.numel() for parameter in one.model.parameters())
    assert 16 * numbers <= cost.state < 17 * numbers
    assert cost.state < cost.peak
    assert (cost.batch_size, cost.size, cost.largest) == (2, (96, 96), True)
    assert rng_state() == random
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert not any(tmp_path.iterdir())


def test_accumulated_passes_count(shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_detr.runs.rehearsal._pass", lambda trainer, batch: 2.0)
    cost = rehearse(trainer(shapes_tiny, tmp_path, "train.accumulate=3"))
    assert cost is not None
    assert cost.seconds == 6.0
    assert cost.describe_time(10).startswith("about 60 s per epoch (6.00 s per step")


LARGE = ("data.train.square=false", "data.train.scales=[96, 256]", "data.train.max_size=null")


def test_memory_is_measured_at_the_largest_size(shapes_tiny: Path, tmp_path: Path) -> None:
    one = trainer(shapes_tiny, tmp_path, *LARGE)
    seen: list[tuple[int, ...]] = []
    one.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].pixels.shape[-2:])))
    before = rng_state()
    first, largest = rehearse(one), rehearse(one, largest=True)
    assert first is not None and largest is not None
    small, large = first.size, largest.size
    assert (first.largest, largest.largest) == (False, True)
    assert seen == [small, small, small, small, large]
    assert (large[0] >= small[0], large[1] >= small[1]) == (True, True)
    assert rng_state() == before
    assert f"2 x {largest.size[0]} x {largest.size[1]} pixels (largest batch)" in largest.describe_memory()


def test_a_process_among_several_holds_gradients_twice(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(shapes_tiny, tmp_path)
    alone = rehearse(one)
    monkeypatch.setattr(one, "world", World(0, 2, one.world.device))
    among_two = rehearse(one)
    assert alone is not None and among_two is not None
    trained = sum(parameter.numel() for parameter in one.model.parameters() if parameter.requires_grad)
    assert among_two.state - alone.state == 4 * trained


def test_the_text_names_what_holds_memory() -> None:
    cost = StepCost(0.5, 3_000_000_000, 400_000_000, 2_000_000_000, 2, (640, 512), largest=False)
    assert cost.describe_memory() == (
        "3.0 GB for 2 x 640 x 512 pixels (first batch): weights, gradients, moments 0.40 GB, activations 2.0 GB, "
        "program 0.60 GB"
    )
    assert cost.describe_memory(2).startswith("3.0 GB in each process for 2 x")
    assert "exchanging gradients" in cost.describe_time(100, 2)
    assert "exchanging gradients" not in cost.describe_time(100)


def test_a_run_with_an_estimate_equals_one_without(
    small_run: Path, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "WORTHWHILE_STEPS", 1)
    shown = Lines()
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=3", display=shown).directory
    assert any(line.startswith("time        about ") for line in shown.lines)
    losses = [record["loss_hex"] for record in read_lines(directory / "metrics.jsonl")]
    assert losses == [record["loss_hex"] for record in read_lines(small_run / "metrics.jsonl")][:3]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), OSError(12, "Cannot allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_named_before_the_run_starts_p19(
    error: Exception, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr("lora_detr.runs.rehearsal._pass", fail)
    monkeypatch.setattr(rehearsal, "WORTHWHILE_STEPS", 1)
    with pytest.raises(WorkerError, match="out of memory") as caught:
        small_runs.train(shapes_tiny, tmp_path / "run")
    assert (caught.value.exit_code, caught.value.code) == (7, "P19")
    assert "--batch-size" in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_the_size_that_did_not_fit_is_named_p19(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(shapes_tiny, tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(one, "criterion", fail)
    with pytest.raises(WorkerError, match="out of memory for a batch of 2 x 96 x 96 pixels"):
        rehearse(one)
    assert all(parameter.grad is None for parameter in one.model.parameters())


def test_other_faults_keep_their_own_words_p19() -> None:
    with pytest.raises(RuntimeError, match="another fault"), report_out_of_memory():
        raise RuntimeError("another fault")


def train_until_memory_ends(room: int, data: Path, output: Path) -> None:
    """Train; before the fourth step, whose images are far larger, let the address space end ``room`` bytes further."""
    whole = Stepper.__call__

    def limited(stepper: Stepper, batches: Sequence[Batch], step: int) -> StepResult:
        if step == 3:
            large = torch.zeros(2, 3, 1600, 1600)
            images = Images(large, torch.zeros(2, 1600, 1600, dtype=torch.bool), batches[0].images.sizes)
            batches = [replace(batches[0], images=images)]
            held = int(PAGES.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + room, resource.RLIM_INFINITY))
        return whole(stepper, batches, step)

    Stepper.__call__ = limited  # type: ignore[method-assign]  # in a process of its own
    try:
        small_runs.train(data, output, "train.save_every=1", "train.max_steps=6")
    except WorkerError as error:
        sys.exit(error.exit_code)


@pytest.mark.skipif(not PAGES.exists(), reason="the limit and its effect are those of Linux")
@pytest.mark.parametrize("room", [0, 100_000_000])
def test_a_later_larger_batch_leaves_the_checkpoint_intact_p19(room: int, shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=train_until_memory_ends, args=(room, shapes_tiny, output))
    process.start()
    process.join(60)
    assert process.exitcode == 7
    ended = json.loads((output / "exit.json").read_text(encoding="utf-8"))
    assert (ended["code"], ended["step"], ended["last_checkpoint"]) == (7, 3, "step-00000003")
    assert ended["message"] == "out of memory"
    checkpoint, skipped = load_latest(output / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (3, ())


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text
