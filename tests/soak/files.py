"""Damage to files: a flipped bit, a cut, a disk that is full."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from lora_detr.checkpoints.checkpoint import (
    BEST,
    EMA,
    MODEL,
    OPTIMIZER,
    STATE,
    best_step,
    latest,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from lora_detr.checkpoints.manifest import NAME as MANIFEST
from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import read_stripped, write_stripped
from lora_detr.errors import CheckpointError, OutputError
from lora_detr.json_value import JSON
from tests.limits import file_size_limit
from tests.soak import runs
from tests.soak.harness import Part, shared_folder

FILES = (MODEL, OPTIMIZER, EMA, STATE, MANIFEST, BEST)
LEVELS = 20


def flip_a_bit(trial: int, folder: Path) -> Mapping[str, JSON]:
    """K02: one bit, in each file in turn; the checkpoint before it is taken, and the broken one is named."""
    checkpoints = runs.own_checkpoints(folder)
    newest = _newest(checkpoints)
    name = FILES[trial % len(FILES)]
    path = checkpoints / BEST if name == BEST else newest / name
    data = bytearray(path.read_bytes())
    position = random.Random(trial).randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)
    if name == BEST:
        _refused(lambda: best_step(checkpoints), path)
    else:
        _skipped(checkpoints, newest)
    return {"file": name, "place": round(position / len(data) / 8, 4)}


def cut(trial: int, folder: Path) -> Mapping[str, JSON]:
    """K01: each file cut at so many per cent, and at a border: around the header's length, the header, and the end."""
    checkpoints = runs.own_checkpoints(folder)
    newest = _newest(checkpoints)
    cuts = 0
    for name in FILES[:-1]:
        path = newest / name
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else len(data) // 2
        borders = (0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 8, len(data) - 1)
        for length in {len(data) * trial // 100, borders[trial % len(borders)]}:
            path.write_bytes(data[:length])
            _skipped(checkpoints, newest)
            cuts += 1
        path.write_bytes(data)
    pointer = (checkpoints / BEST).read_bytes()
    name_length = len(pointer.split()[0])
    length = len(pointer) * trial // 100
    (checkpoints / BEST).write_bytes(pointer[:length])
    if length == name_length:  # a whole name leads to the right checkpoint without its hash too
        assert best_step(checkpoints) == best_step(runs.finished() / "checkpoints")
    else:
        _refused(lambda: best_step(checkpoints), checkpoints / BEST)
    loaded, skipped = load_latest(checkpoints)
    assert loaded is not None
    assert not skipped
    assert loaded.step == runs.saved().step
    return {"cuts": cuts + 1}


def fill_the_disk(trial: int, folder: Path) -> Mapping[str, JSON]:
    """P11: room for so many twentieths of a checkpoint; the one that is there stays, and with more room it goes on."""
    assert 0 <= trial < LEVELS
    size = sum(path.stat().st_size for path in _newest(runs.finished() / "checkpoints").iterdir())
    room = size * trial // LEVELS
    disk = folder / "disk"
    disk.mkdir()
    mounted = _mount(disk, size + room + 100_000)
    try:
        kept = _save(disk, 1)
        if mounted:
            free = shutil.disk_usage(disk).free
            (disk / "ballast").write_bytes(bytes(max(0, free - room)))
            _fails_to_save(disk)
            (disk / "ballast").unlink()
        else:
            largest = max(path.stat().st_size for path in kept.iterdir())
            with file_size_limit(largest * trial // LEVELS):
                _fails_to_save(disk)
        names = sorted(path.name for path in disk.iterdir())
        assert names == [kept.name], f"left behind: {names}"
        assert load_checkpoint(kept, with_optimizer=True).step == 1
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={3 * size + 100_000}", str(disk)], check=True)
        assert load_checkpoint(_save(disk, 2), with_optimizer=True).step == 2
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    return {"disk": "tmpfs" if mounted else "limit", "room": room}


def flip_a_stripped_bit(trial: int, folder: Path) -> Mapping[str, JSON]:
    """K02: one bit of a stripped file."""
    data = bytearray(_stripped().read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(trial)
    # The header is small and says how to read all else: every fourth flip is in it.
    position = draw.randrange(header * 8) if trial % 4 == 0 else draw.randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    path = folder / "stripped.safetensors"
    path.write_bytes(data)
    _refused(lambda: read_stripped(path), path)
    return {"place": "header" if position < header * 8 else "tensors"}


@cache
def _stripped() -> Path:
    path = shared_folder("stripped") / "stripped.safetensors"
    opened = open_run(runs.finished())
    write_stripped(path, opened.model.detector.inference_state(), opened.deployment)
    return path


def _newest(checkpoints: Path) -> Path:
    path = latest(checkpoints)
    assert path is not None
    return path


def _save(directory: Path, step: int) -> Path:
    loaded = runs.saved()
    return save_checkpoint(
        directory,
        step=step,
        model=loaded.model,
        optimizer=loaded.optimizer,
        ema=loaded.ema,
        state=loaded.state,
        facts={"world_size": 1},
    )


def _fails_to_save(directory: Path) -> None:
    for step in (1, 2):  # one that is there, and a new one
        with pytest.raises(OutputError) as caught:
            _save(directory, step)
        assert caught.value.exit_code == 5
        assert str(directory) in caught.value.message
        assert caught.value.remedy


def _mount(folder: Path, size: int) -> bool:
    """Mount a small disk in memory; return whether that is allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _refused(read: Callable[[], object], path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read()
    assert str(path) in caught.value.message
    assert caught.value.remedy


def _skipped(checkpoints: Path, broken: Path) -> None:
    """Assert that a checkpoint is refused where it is named, and skipped by name where the newest is asked for."""
    _refused(lambda: load_checkpoint(broken, with_optimizer=True), broken)
    loaded, skipped = load_latest(checkpoints)
    assert loaded is not None
    assert loaded.step < runs.saved().step
    assert [str(broken) in error.message for error in skipped] == [True], skipped


PARTS = (
    Part(
        "bit-flips", 300, 12, flip_a_bit, "one bit of a checkpoint or of `best` flipped: seen, and the one before taken"
    ),
    Part("truncations", 100, 6, cut, "each file of a checkpoint cut: seen, and the one before taken"),
    Part("disk-full", LEVELS, 2, fill_the_disk, "no room for a checkpoint: exit 5, nothing lost, nothing left behind"),
    Part("stripped-bit-flips", 100, 8, flip_a_stripped_bit, "one bit of a stripped file flipped: refused"),
)
