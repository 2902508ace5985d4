"""Two processes over gloo compute the gradients of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.errors import ConfigError
from lora_detr.tensor_files import read_tensors
from lora_detr.training.distributed import World
from tests import small_runs
from tests.conftest import REPOSITORY
from tests.unit.training.one_rank import SETTINGS, batch_of

TIMEOUT = 100  # seconds; a hang is what these tests are about


def run_two(data: Path, out: Path, names: list[str]) -> list[dict[str, Tensor]]:
    """Run a step on two ranks and return what each wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.unit.training.one_rank", str(data), str(out), *names]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [read_tensors(out / f"rank{rank}.safetensors")[0] for rank in range(2)]


# Derivation. Let s_i be the sum of all weighted losses of image i, before normalising. One process on both images has
# the loss (s_0 + s_1) / n, with n = max(number of objects, 1). On two ranks, rank r computes s_r / (n / 2), n summed
# over both; averaging the gradients over two ranks gives the gradient of (2 s_0 / n + 2 s_1 / n) / 2 = (s_0 + s_1) / n.
# With n of each rank alone, an image with few objects would weigh more than one with many.
@pytest.mark.distributed
@pytest.mark.parametrize("minus", ["", "-"], ids=["both with objects", "one rank without objects"])
def test_two_ranks_of_one_image_equal_one_process_of_two(minus: str, shapes_tiny: Path, tmp_path: Path) -> None:
    splits = small_runs.splits_of(shapes_tiny, SETTINGS)
    counts = [len(record.category_ids) for record in splits.train.records]
    first = small_runs.with_objects(splits)[0]
    second = next(i for i in small_runs.with_objects(splits) if counts[i] != counts[first])
    names = [str(first), f"{minus}{second}"]

    alone = small_runs.stepper(SETTINGS, splits.categories.num_classes)
    loss = alone([batch_of(splits, names)], 0).loss
    expected = {name: p.grad for name, p in alone.model.named_parameters() if p.requires_grad}
    ranks = run_two(shapes_tiny, tmp_path, names)

    size = torch.stack([gradient.norm() for gradient in expected.values() if gradient is not None]).norm()
    for rank in ranks:
        # Every parameter takes part on every rank, branches included, or averaging would wait for it for ever.
        assert {name for name in rank if name.startswith("gradient/")} == {f"gradient/{name}" for name in expected}
        parts = [rank[f"gradient/{name}"] - gradient for name, gradient in expected.items() if gradient is not None]
        # The tolerance is that of ``test_step.py``: exchanging two images of a batch moves the gradient by 1e-6.
        assert torch.stack([part.norm() for part in parts]).norm() <= 1e-5 * size
    assert (ranks[0]["loss"] + ranks[1]["loss"]) / 2 == pytest.approx(loss, rel=1e-6)
    for name, tensor in ranks[0].items():
        assert name == "loss" or torch.equal(tensor, ranks[1][name]), name


def test_alone_there_is_nothing_to_share() -> None:
    world = small_runs.ALONE
    tensor, model = torch.ones(2), torch.nn.Linear(1, 1)
    assert world.is_main
    assert world.sum(tensor) is tensor
    assert world.total(3) == 3
    assert world.gather("item") == ["item"]
    assert world.wrap(model) is model
    world.barrier()
    world.close()


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"--device {device}") as caught:
        World.from_environment(device)
    assert caught.value.exit_code == 2
