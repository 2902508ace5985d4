"""Any number of processes over gloo compute the loss and the gradients of one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.errors import ConfigError
from lora_detr.processes.world import World
from lora_detr.tensor_files import read_tensors
from tests import small_runs
from tests.conftest import REPOSITORY
from tests.unit.training.one_rank import SYSTEMS, Case, as_input

TIMEOUT = 100  # seconds; a hang is what these tests are about
# Another number of images is summed in another order. How much that rounds off depends on the vectors of the machine,
# so all machines take the same ones.
ALIKE = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
SEVERAL = (2, pytest.param(4, marks=pytest.mark.slow))
ALL = (99, 99, 99, 99)
# Objects kept of each image. The names say what is special with two processes, of two images each, and with four.
KEPT = {
    "all": ALL,
    "all, others": ALL,
    "all, and others": ALL,
    "one of four without objects": (99, 99, 0, 99),
    "one of two without objects": (0, 0, 99, 99),
    "every other one without objects": (0, 99, 0, 99),
    "no object": (0, 0, 0, 0),
    "one object": (0, 1, 0, 0),
    "two objects, fewer than processes": (1, 0, 1, 0),
    "three objects on the last": (0, 0, 0, 3),
}
FEW = ("all", "one of two without objects", "no object")  # in float32 and for other systems too
# Denoising makes 12 // most groups, where most is the largest number of objects in an image of the process.
AS_CROWDED, UNEVEN = (1, 1, 1, 1), (1, 1, 3, 3)


def cases_of(data: Path) -> list[Case]:
    """Return ten batches for the small model, some also in float32 and for other systems, and three for denoising."""
    draw = random.Random(0)
    config = small_runs.config()
    splits = small_runs.splits_of(data, config)
    filled = [i for i, record in enumerate(splits.train.records) if len(record.category_ids) >= 3]
    cases = []
    for name, keep in KEPT.items():
        images = tuple(draw.sample(filled, 4))
        cases.append(Case(f"{name} float64", images, keep))
        if name in FEW:
            cases.append(Case(f"{name} float32", images, keep, double=False))
            others = [system for system in SYSTEMS if system != "denoising without noise"]
            cases += [Case(f"{name} {system}", images, keep, system) for system in others]
    images = tuple(draw.sample(filled, 4))
    for name, keep in (("as crowded", AS_CROWDED), ("uneven", UNEVEN), ("one empty", (0, 0, 1, 1))):
        cases.append(Case(f"denoising {name}", images, keep, "denoising without noise"))
    return cases


class Ranks:
    """What several numbers of processes compute in all cases: each with one process when it is first asked for."""

    def __init__(self, data: Path, out: Path) -> None:
        self.cases = {case.name: case for case in cases_of(data)}
        self.data, self.out = data, out
        self.computed: set[int] = set()

    def compute(self, *sizes: int) -> None:
        """Run as many processes as are wanted, unless they were."""
        wanted = [str(size) for size in sizes if size not in self.computed]
        if not wanted:
            return
        self.computed |= set(sizes)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.training.one_rank", str(self.data), str(self.out), *wanted],
            cwd=REPOSITORY,
            env={**os.environ, **ALIKE},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(as_input(list(self.cases.values())), timeout=TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, errors

    def found(self, name: str, size: int) -> list[Mapping[str, Tensor]]:
        """Return the loss, gradients and weights of each rank."""
        return [read_tensors(self.out / f"{name}-{size}-{rank}.safetensors")[0] for rank in range(size)]

    def differences(self, name: str, size: int) -> tuple[float, float]:
        """Return by how much the loss and all gradients differ from those of one process, relative to theirs."""
        self.compute(1, size)
        (alone,) = self.found(name, 1)
        ranks = self.found(name, size)
        loss = sum(rank["loss"].item() for rank in ranks) / size
        keys = [key for key in alone if key.startswith("gradient/")]
        difference = torch.stack([(ranks[0][key].double() - alone[key].double()).norm() for key in keys]).norm()
        norm = torch.stack([alone[key].double().norm() for key in keys]).norm()
        assert norm > 0
        return abs(loss / alone["loss"].item() - 1), (difference / norm).item()


@pytest.fixture(scope="module")
def ranks(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(shapes_tiny, tmp_path_factory.mktemp("ranks"))


# Derivation. Let s_i be the sum of all weighted losses of image i, before normalising. One process on both images has
# the loss (s_0 + s_1) / n, with n = max(number of objects, 1). On two ranks, rank r computes s_r / (n / 2), n summed
# over both; averaging the gradients over two ranks gives the gradient of (2 s_0 / n + 2 s_1 / n) / 2 = (s_0 + s_1) / n.
# With n of each rank alone, an image with few objects would weigh more than one with many.
@pytest.mark.distributed
@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("name", KEPT)
def test_loss_and_gradients_are_those_of_one_process_r4(name: str, size: int, ranks: Ranks) -> None:
    assert max(ranks.differences(f"{name} float64", size)) <= 1e-12


@pytest.mark.distributed
@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("name", FEW)
def test_so_are_those_of_float32_r4(name: str, size: int, ranks: Ranks) -> None:
    assert max(ranks.differences(f"{name} float32", size)) <= 1e-6


@pytest.mark.distributed
@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("system", ["hybrid and dac", "relation without denoising"])
def test_other_systems_r4(system: str, name: str, size: int, ranks: Ranks) -> None:
    assert max(ranks.differences(f"{name} {system}", size)) <= 1e-12


@pytest.mark.distributed
@pytest.mark.parametrize("size", SEVERAL)
def test_denoising_differs_in_the_number_of_groups_and_in_noise_alone_r4(size: int, ranks: Ranks) -> None:
    assert max(ranks.differences("denoising as crowded", size)) <= 1e-12
    assert max(ranks.differences("denoising uneven", size)) > 1e-3


@pytest.mark.distributed
@pytest.mark.parametrize("size", SEVERAL)
def test_all_ranks_hold_the_same_afterwards_even_without_objects_n08(size: int, ranks: Ranks) -> None:
    ranks.compute(1, size)
    for name in ranks.cases:
        (alone,) = ranks.found(name, 1)
        first, *others = ranks.found(name, size)
        # Every parameter takes part on every rank, branches included, or averaging would wait for it for ever.
        assert first.keys() == alone.keys()
        assert {key.partition("/")[2] for key in first if key.startswith("gradient/")} >= {
            key.partition("/")[2] for key in first if key.startswith("weight/branches")
        }
        for other in others:
            assert all(torch.equal(tensor, other[key]) for key, tensor in first.items() if key != "loss"), name


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
