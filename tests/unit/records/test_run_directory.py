"""Tests of what protects a run directory: its lock, and resuming past damaged checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_detr.config.load import load_config
from lora_detr.errors import ConfigError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from tests import small_runs
from tests.small_runs import Lines


def damage(checkpoint: Path) -> None:
    """Flip a bit in the weights of a checkpoint."""
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_second_process_is_refused_c09(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    with directory.lock(), pytest.raises(ConfigError, match="another process trains here") as caught, directory.lock():
        pass
    assert caught.value.code == "C09"
    with directory.lock():  # free again
        pass


def test_an_empty_start_leaves_nothing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    with directory.lock():
        directory.discard()
    assert not directory.path.exists()


def test_resume_goes_past_damaged_checkpoints_and_saves_again_k01(
    small_run: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.keep_last=3", "train.max_steps=6").directory
    kept = directory / "checkpoints" / "step-00000006"
    for step in (20, 30):
        later = kept.with_name(f"step-{step:08d}")
        shutil.copytree(kept, later)
        damage(later)
    shown = Lines()
    finished = run.resume(directory, {"train.max_steps": 12}, shown)
    assert finished.metrics is not None
    assert (directory / "checkpoints" / "step-00000012" / "MANIFEST.json").exists()
    assert sum(line.startswith("skipped: ") for line in shown.lines) == 2


def test_fewer_levels_than_feature_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match="gives 3 feature maps"):
        load_config(RunConfig, preset="deformable", overrides=["model.levels=2"])
