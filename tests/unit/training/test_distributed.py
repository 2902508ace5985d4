"""Two processes over gloo compute the gradients of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_detr.errors import ConfigError
from lora_detr.tensor_files import read_tensors
from lora_detr.training.distributed import World
from tests import small_runs
from tests.conftest import REPOSITORY
from tests.unit.training.one_rank import SETTINGS, batch_of

TIMEOUT = 100  # seconds; a hang is what these tests are about


@pytest.fixture(scope="module")
def cases(shapes_tiny: Path) -> dict[str, str]:
    """Two images with different numbers of objects, as they are, and with the second one's objects taken away."""
    splits = small_runs.splits_of(shapes_tiny, SETTINGS)
    counts = [len(record.category_ids) for record in splits.train.records]
    first = small_runs.with_objects(splits)[0]
    second = next(i for i in small_runs.with_objects(splits) if counts[i] != counts[first])
    return {"both": f"{first},{second}", "one empty": f"{first},-{second}"}


@pytest.fixture(scope="module")
def ranks(cases: dict[str, str], shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks computed in all cases."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.unit.training.one_rank", str(shapes_tiny), str(out), *cases.values()]
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
    return out


# Derivation. Let s_i be the sum of all weighted losses of image i, before normalising. One process on both images has
# the loss (s_0 + s_1) / n, with n = max(number of objects, 1). On two ranks, rank r computes s_r / (n / 2), n summed
# over both; averaging the gradients over two ranks gives the gradient of (2 s_0 / n + 2 s_1 / n) / 2 = (s_0 + s_1) / n.
# With n of each rank alone, an image with few objects would weigh more than one with many.
@pytest.mark.distributed
@pytest.mark.parametrize("name", ["both", "one empty"])
def test_two_ranks_of_one_image_equal_one_process_of_two(
    name: str, cases: dict[str, str], ranks: Path, shapes_tiny: Path
) -> None:
    splits = small_runs.splits_of(shapes_tiny, SETTINGS)
    alone = small_runs.stepper(SETTINGS, splits.categories.num_classes)
    loss = alone([batch_of(splits, cases[name].split(","))], 0).loss
    expected = {key: p.grad for key, p in alone.model.named_parameters() if p.requires_grad}
    found = [read_tensors(ranks / f"{cases[name]}-rank{rank}.safetensors")[0] for rank in range(2)]

    size = torch.stack([gradient.norm() for gradient in expected.values() if gradient is not None]).norm()
    for rank in found:
        # Every parameter takes part on every rank, branches included, or averaging would wait for it for ever.
        assert {key for key in rank if key.startswith("gradient/")} == {f"gradient/{key}" for key in expected}
        parts = [rank[f"gradient/{key}"] - gradient for key, gradient in expected.items() if gradient is not None]
        # The tolerance is that of ``test_step.py``: exchanging two images of a batch moves the gradient by 1e-6.
        assert torch.stack([part.norm() for part in parts]).norm() <= 1e-5 * size
    assert (found[0]["loss"] + found[1]["loss"]) / 2 == pytest.approx(loss, rel=1e-6)
    for key, tensor in found[0].items():
        assert key == "loss" or torch.equal(tensor, found[1][key]), key


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
