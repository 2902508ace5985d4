"""Settings of the optimiser in files of earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lora_detr.config.dump import dump_config
from lora_detr.config.load import load_config
from lora_detr.errors import ConfigError
from lora_detr.recipe.run_config import RunConfig


def settings(folder: Path, clip: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(f"train:\n  optimizer:\n    clip_norm: 0.3\n    clip: {clip}\n    betas: [0.8, 0.9]\n")
    return path


def test_settings_that_clip_the_whole_gradient_are_read_and_no_longer_written(tmp_path: Path) -> None:
    loaded = load_config(RunConfig, files=[settings(tmp_path, "together")]).config
    assert (loaded.train.optimizer.clip_norm, loaded.train.optimizer.betas) == (0.3, (0.8, 0.9))
    assert "clip: " not in dump_config(loaded)
    stored = {"train": {"optimizer": {"clip_norm": 0.3, "clip": "together", "betas": [0.8, 0.9]}}}  # of a checkpoint
    assert RunConfig.model_validate(stored) == loaded


def test_settings_that_clip_parts_of_it_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`train\.optimizer\.clip` is 'apart' \(from file .*; must be .*'together'"):
        load_config(RunConfig, files=[settings(tmp_path, "apart")])
    with pytest.raises(ValidationError, match="Input should be 'together'"):
        RunConfig.model_validate({"train": {"optimizer": {"clip": "apart"}}})
