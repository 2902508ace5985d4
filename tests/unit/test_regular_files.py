"""A name from outside opens a regular file, or is refused at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from lora_detr.checkpoints.checkpoint import BEST, MODEL, STATE, best_step, load_checkpoint
from lora_detr.checkpoints.manifest import NAME
from lora_detr.checkpoints.official.file import read_official
from lora_detr.cli.image_plan import plan
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.data.coco.checks import read_root
from lora_detr.data.coco.checksums import SHA256SUMS, read_sums
from lora_detr.data.images import decode_file
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import CheckpointError, ConfigError, DataError, OutputError
from lora_detr.json_value import read_json
from lora_detr.records.log_reading import read_object, read_steps
from lora_detr.records.metrics import append_line
from lora_detr.records.run_directory import RunDirectory
from lora_detr.regular_files import open_regular, read_regular
from lora_detr.tensor_files import read_tensors


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    """A hang fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("still waiting after 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "endless device", "socket"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put something that is no regular file under a name."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            monkeypatch.chdir(path.parent)  # the path of a socket has 107 letters at most
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        else:
            path.symlink_to("/dev/zero")
        return path

    return make


def test_what_is_no_regular_file_is_refused_with_its_kind(special: Callable[[str], Path]) -> None:
    with pytest.raises(OSError, match=r"expected a regular file, found a (pipe \(FIFO\)|device|socket)"):
        open_regular(special("name"))


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, at most 4 are read"):
        read_regular(path, 4)
    with pytest.raises(OSError, match="at most 4 are read"):
        read_regular("/proc/self/status", 4)  # whose size is given as 0
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with open_regular(link) as file:
        assert file.read() == b"12345"


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "a.safetensors": (read_tensors, CheckpointError),
    "a.pth": (read_official, CheckpointError),
    "state.json": (lambda path: read_json(path, CheckpointError), CheckpointError),
    "a.yaml": (read_yaml, ConfigError),
    "data.yaml": (find_splits, ConfigError),
    "train.json": (read_root, DataError),
    "images.json": (lambda path: plan([path], path.parent, path, draw=False), DataError),
    "1.png": (decode_file, DataError),
    SHA256SUMS: (lambda path: read_sums(path.parent), DataError),
    "exit.json": (read_object, OutputError),
    "log.jsonl": (lambda path: list(read_steps(path)), OutputError),
    "metrics.jsonl": (lambda path: append_line(path, {}), OutputError),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_it_with_the_error_of_its_kind(name: str, special: Callable[[str], Path]) -> None:
    read, kind = READERS[name]
    path = special(name)
    with pytest.raises(kind) as caught:
        read(path)
    assert name in str(caught.value)
    assert "found a" in str(caught.value) or kind is OutputError or name == "data.yaml"


def read(checkpoints: Path) -> None:
    best_step(checkpoints)
    load_checkpoint(checkpoints / "step-00000012", with_optimizer=True)


@pytest.mark.parametrize("name", [BEST, f"step-00000012/{NAME}", f"step-00000012/{STATE}", f"step-00000012/{MODEL}"])
def test_a_checkpoint_with_it_is_refused_k03(
    name: str, special: Callable[[str], Path], small_run: Path, tmp_path: Path
) -> None:
    checkpoints = Path(shutil.copytree(small_run / "checkpoints", tmp_path / "c"))
    special(f"c/{name}")
    with pytest.raises(CheckpointError, match=Path(name).name):
        read(checkpoints)


def test_the_lock_of_a_run_is_not_waited_for(special: Callable[[str], Path], tmp_path: Path) -> None:
    special(".lock")
    with pytest.raises(OutputError, match=r"\.lock"), RunDirectory(tmp_path).lock():
        pass
