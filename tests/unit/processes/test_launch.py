"""How many processes a command becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lora_detr.errors import ConfigError, WorkerError
from lora_detr.processes import launch
from lora_detr.processes.process import PEER_GONE


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """A machine with so many GPUs."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


@pytest.mark.parametrize(
    ("visible", "device", "gpus", "nproc", "expected"),
    [
        (0, "auto", None, None, 1),
        (0, "auto", None, 3, 3),
        (0, "cpu", None, 2, 2),
        (4, "cpu", None, None, 1),
        (4, "auto", None, None, 4),  # never silently one of several
        (4, "cuda", 2, None, 2),
        (4, "cuda:1", None, None, 1),
        (1, "auto", None, None, 1),
    ],
    indirect=["visible"],
)
def test_processes(visible: int, device: str, gpus: int | None, nproc: int | None, expected: int) -> None:
    assert launch.processes_wanted(device, gpus, nproc) == expected


@pytest.mark.parametrize(
    ("visible", "device", "gpus", "nproc", "message"),
    [
        (0, "auto", 2, None, "--gpus 2: PyTorch sees 0 CUDA devices"),
        (4, "cuda", 8, None, "--gpus 8: PyTorch sees 4 CUDA devices"),
        (4, "cuda", None, 2, "--nproc 2: is for --device cpu"),
        (4, "cuda:1", 2, None, "--device cuda:1 is a single GPU"),
        (0, "cpu", None, 0, "--nproc 0: expected 1 or more"),
        (4, "auto", -1, None, "--gpus -1: expected 1 or more"),
    ],
    indirect=["visible"],
)
def test_contradictions(visible: int, device: str, gpus: int | None, nproc: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch.processes_wanted(device, gpus, nproc)


def test_a_process_that_was_launched_launches_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun the same command joins, whatever it asks for."""
    monkeypatch.setenv("RANK", "1")
    assert not launch.launch_if_wanted("cpu", None, 2)


@pytest.mark.parametrize("visible", [0], indirect=True)
def test_one_process_needs_no_launcher(visible: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not launch.launch_if_wanted("auto", None, None)


def failure(rank: int, code: int, message: str | None, path: Path) -> ProcessFailure:
    file = path / f"{rank}.json"
    if message is not None:
        said = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": "5"}}  # long before the others
        file.write_text(json.dumps({"message": said}))
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file=str(file))


@pytest.mark.parametrize(
    ("failed", "first", "killed", "expected"),
    [
        ({1: (7, PEER_GONE)}, (0,), (), "rank 0 ended too soon"),
        ({1: (7, PEER_GONE)}, (0, 1), (), "rank 0 ended too soon"),
        ({1: (-9, None)}, (0,), (101,), "rank 0 ended too soon"),
        ({1: (7, PEER_GONE), 2: (-9, None)}, (0,), (102,), "rank 0 ended too soon"),
        ({0: (-9, None)}, (0,), (), "rank 0 (process 100) was ended by SIGKILL"),
        ({0: (-9, None), 1: (7, PEER_GONE)}, (0, 1), (), "rank 0 (process 100) was ended by SIGKILL"),
        ({0: (-9, None), 1: (-9, None)}, (0,), (101,), "rank 0 (process 100) was ended by SIGKILL"),
        ({0: (4, None), 1: (7, PEER_GONE)}, (0, 1), (), 4),
        ({1: (3, None)}, (0, 1), (), 3),  # torch has ended the other one
        ({1: (7, PEER_GONE)}, (), (), 7),
    ],
)
def test_the_process_that_failed_for_itself_is_blamed(
    failed: dict[int, tuple[int, str | None]],
    first: tuple[int, ...],
    killed: tuple[int, ...],
    expected: str | int,
    tmp_path: Path,
) -> None:
    found = launch._blame({rank: failure(rank, *how, tmp_path) for rank, how in failed.items()}, first, killed)
    assert isinstance(found, SystemExit if isinstance(expected, int) else WorkerError)
    assert (found.code if isinstance(found, SystemExit) else found.message) == expected
