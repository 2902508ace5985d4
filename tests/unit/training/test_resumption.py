"""What may change when a run goes on, and what may not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_detr.errors import ConfigError
from lora_detr.training import run
from lora_detr.training.resumption import CHANGEABLE, changed
from tests import small_runs
from tests.small_runs import Lines


def test_nothing_given_changes_nothing() -> None:
    stored = small_runs.config()
    assert changed(stored, {"train.seed": 42, "train.batch_size": 2}) == stored


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 9),
        ("train.max_steps", 7),
        ("train.device", "cuda"),
        ("data.workers", 1),
        ("train.keep_every", 2),
    ],
)
def test_where_and_how_long_may_change(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    assert key in CHANGEABLE
    assert getattr(getattr(changed(small_runs.config(), {key: value}), section), name) == value


def test_more_epochs_lift_the_limit_of_steps_unless_one_is_given() -> None:
    stored = small_runs.config("train.max_steps=3")
    assert changed(stored, {"train.epochs": 5}).train.max_steps is None
    assert changed(stored, {"train.epochs": 5, "train.max_steps": 4}).train.max_steps == 4


def test_null_is_a_value() -> None:
    stored = small_runs.config("train.max_steps=3", "train.keep_every=2")
    freed = changed(stored, {"train.max_steps": None, "train.keep_every": None}).train
    assert (freed.max_steps, freed.keep_every) == (None, None)
    with pytest.raises(ConfigError, match=r"clip_norm: the run has 0\.1, this command None"):
        changed(stored, {"train.optimizer.clip_norm": None})


def test_the_settings_of_the_run_directory_follow(own_run: Path) -> None:
    before = (own_run / "config.yaml").read_text().splitlines()
    run.resume(own_run, {"train.epochs": 3, "data.workers": 1}, Lines())
    after = (own_run / "config.yaml").read_text().splitlines()
    differing = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert differing == ["workers: 1  # resume", "epochs: 3  # resume"]


def test_a_drop_that_moves_is_said(shapes_tiny: Path, tmp_path: Path) -> None:
    drop = ("train.schedule.drop_fractions=[0.5]", "train.max_steps=4")
    directory = small_runs.train(shapes_tiny, tmp_path / "run", *drop).directory
    run.resume(directory, {"train.max_steps": 5}, lines := Lines())
    assert not [line for line in lines.lines if line.startswith("note: ")]
    run.resume(directory, {"train.max_steps": 12}, lines)
    (note,) = [line for line in lines.lines if line.startswith("note: ")]
    assert note.endswith("now 12 instead of 5; the factor on the learning rate goes from 0.1 to 1")


def test_checkpoints_kept_for_good_outlive_a_change_of_mind(shapes_tiny: Path, tmp_path: Path) -> None:
    overrides = ("train.keep_every=1", "train.keep_last=1", "train.epochs=2")
    directory = small_runs.train(shapes_tiny, tmp_path / "run", *overrides).directory
    run.resume(directory, {"train.epochs": 4, "train.keep_every": None}, Lines())
    best = (directory / "checkpoints" / "best").read_text().strip()
    found = {path.name for path in (directory / "checkpoints").glob("step-*")}
    assert found == {f"step-{step:08d}" for step in (6, 12, 24)} | {best}


def test_c07_changes_of_what_is_learned_are_all_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(small_runs.config(), {"train.optimizer.lr": 0.5, "branches.1.matcher.k": 5, "train.epochs": 5})
    assert (caught.value.code, caught.value.exit_code) == ("C07", 2)
    message = caught.value.message
    assert "branches.1.matcher.k: the run has 4, this command 5" in message
    assert "train.optimizer.lr: the run has 0.001, this command 0.5" in message
    assert "epochs" not in message
    assert "--epochs" in caught.value.remedy


def test_values_are_checked_and_keys_are_known() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        changed(small_runs.config(), {"train.epochs": 0})
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        changed(small_runs.config(), {"train.epoch": 3})


def test_a_run_goes_on_with_data_that_moved(shapes_tiny: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shapes_tiny, tmp_path / "data"))
    directory = small_runs.train(data, tmp_path / "run", "train.max_steps=2").directory
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="nothing there"):
        run.resume(directory, {"train.max_steps": 3}, Lines())
    run.resume(directory, {"train.max_steps": 3, "data.path": moved}, Lines())
    # What was changed is kept, so that the next time nothing need be said.
    run.resume(directory, {"train.max_steps": 4}, Lines())


def test_c08_other_data_of_the_same_shape_is_refused(own_run: Path, learned_data: Path) -> None:
    with pytest.raises(ConfigError, match="is not what the run started on") as caught:
        run.resume(own_run, {"train.epochs": 3, "data.path": learned_data}, Lines())
    assert caught.value.code == "C08"
