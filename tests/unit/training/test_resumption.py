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
    assert changed(stored, {"train.seed": None, "train.batch_size": 2}) == stored


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
