"""What may change when a run goes on, and what may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import run
from lora_detr.runs.resumption import CHANGEABLE, allowed_changes, changed
from tests import small_runs
from tests.small_runs import Lines, read_lines


def checked(stored: RunConfig, changes: Mapping[str, object], *overrides: str) -> list[dict[str, Any]]:
    """Return what a resumed run would record as changed."""
    return allowed_changes(stored, changed(stored, changes), overrides)


def test_nothing_given_changes_nothing() -> None:
    stored = small_runs.config()
    assert changed(stored, {"train.seed": 42, "train.batch_size": 2}) == stored
    assert checked(stored, {"train.seed": 42}) == []


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
    (found,) = checked(small_runs.config(), {key: value})
    assert (found["key"], found["now"], found["override"]) == (key, value, False)


def test_what_comes_together_in_a_batch_may_not_change_c07() -> None:
    with pytest.raises(ConfigError, match=r"data\.group_by_shape: the run has False, this command True") as caught:
        checked(small_runs.config(), {"data.group_by_shape": True})
    assert caught.value.code == "C07"
    (found,) = checked(small_runs.config(), {"data.group_by_shape": True}, "data.group_by_shape")
    assert found["override"]


def test_more_epochs_lift_the_limit_of_steps_unless_one_is_given() -> None:
    stored = small_runs.config("train.max_steps=3")
    assert changed(stored, {"train.epochs": 5}).train.max_steps is None
    assert changed(stored, {"train.epochs": 5, "train.max_steps": 4}).train.max_steps == 4


def test_null_is_a_value() -> None:
    stored = small_runs.config("train.max_steps=3", "train.keep_every=2")
    freed = changed(stored, {"train.max_steps": None, "train.keep_every": None}).train
    assert (freed.max_steps, freed.keep_every) == (None, None)
    with pytest.raises(ConfigError, match=r"clip_norm: the run has 0\.1, this command None"):
        checked(stored, {"train.optimizer.clip_norm": None})


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
    best = (directory / "checkpoints" / "best").read_text().split()[0]
    found = {path.name for path in (directory / "checkpoints").glob("step-*")}
    assert found == {f"step-{step:08d}" for step in (6, 12, 24)} | {best}


def test_changes_of_what_is_learned_are_all_listed_c07() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(small_runs.config(), {"train.optimizer.lr": 0.5, "branches.1.matcher.k": 5, "train.epochs": 5})
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


def test_other_data_of_the_same_shape_is_refused_c08(own_run: Path, learned_data: Path) -> None:
    with pytest.raises(ConfigError, match="is not what the run started on") as caught:
        run.resume(own_run, {"train.epochs": 3, "data.path": learned_data}, Lines())
    assert caught.value.code == "C08"


def resumed(run_directory: Path, changes: Mapping[str, object], *overrides: str) -> list[str]:
    """Continue a run and return what was said."""
    lines = Lines()
    run.resume(run_directory, changes, lines, overrides)
    return lines.lines


def test_a_change_by_name_is_made_and_recorded_c07(own_run: Path) -> None:
    changes = {"train.epochs": 5, "train.optimizer.lr": 0.5, "train.optimizer.weight_decay": 0.25}
    with pytest.raises(ConfigError) as caught:
        resumed(own_run, changes, "train.optimizer.lr")
    assert "weight_decay" in caught.value.message
    assert "optimizer.lr:" not in caught.value.message
    said = resumed(own_run, changes, "train.optimizer")
    assert "note: overridden: train.optimizer.lr: 0.001 until now, 0.5 from here on" in said
    (record,) = read_lines(own_run / "changes.jsonl")
    assert record["step"] == 12
    assert {change["key"]: change["override"] for change in record["changes"]} == {
        "train.epochs": False,
        "train.optimizer.lr": True,
        "train.optimizer.weight_decay": True,
    }
    assert [line["lr"]["group0"] for line in read_lines(own_run / "metrics.jsonl")][-1] == pytest.approx(0.5)
    last = max((own_run / "checkpoints").glob("step-*"))
    groups = json.loads((last / "state.json").read_text())["optimizer"]["groups"]
    assert 0.25 in {group["weight_decay"] for group in groups}


def test_an_override_that_names_nothing_c07() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'train\.optimizer\.lr'"):
        checked(small_runs.config(), {}, "train.optimiser.lr")


def test_groups_that_do_not_fit_are_no_traceback_k08(own_run: Path) -> None:
    with pytest.raises(CheckpointError, match="groups of parameters are not those of this run"):
        resumed(own_run, {"train.epochs": 5, "train.optimizer.lr_rules": []}, "train.optimizer.lr_rules")


def test_another_batch_by_name_goes_on_in_the_same_epoch_c08(shapes_tiny: Path, tmp_path: Path) -> None:
    """Eight steps of two images are one epoch and two steps; then come steps of four images."""
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=8", "train.save_every=8").directory
    with pytest.raises(ConfigError, match=r"train\.batch_size: the run has 2, this command 4"):
        resumed(directory, {"train.max_steps": None, "train.batch_size": 4})
    resumed(directory, {"train.max_steps": None, "train.batch_size": 4}, "train.batch_size")
    lines = read_lines(directory / "log.txt")
    # The limit of steps ended the second epoch early; its two steps are one of the new ones, and two are left.
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 6), (1, 8), (1, 10)]
    resumed(directory, {"train.epochs": 3})  # the next resume needs no override and keeps the batch
    assert [(line["epoch"], line["step"]) for line in read_lines(directory / "log.txt")][-1] == (2, 13)


def test_other_data_by_name_c08(own_run: Path, shapes_tiny: Path, learned_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shapes_tiny, tmp_path / "data"))
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != gone]
    path.write_text(json.dumps(content))
    said = resumed(own_run, {"train.epochs": 3, "data.path": data}, "data")
    assert [line for line in said if line.startswith("note: overridden: data: ")]
    content["categories"][0]["name"] = "sphere"
    path.write_text(json.dumps(content))
    shutil.rmtree(data / "val")
    (data / "annotations" / "instances_val.json").unlink()
    with pytest.raises(ConfigError, match="other categories than the run"):
        resumed(own_run, {"train.epochs": 4, "data.path": data}, "data")


def test_a_checkpoint_every_so_many_steps(small_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    """A run that goes on from one of them equals one that was never stopped."""
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.save_every=4", "train.keep_last=9").directory
    found = sorted((directory / "checkpoints").glob("step-*"))
    assert [int(path.name.removeprefix("step-")) for path in found] == [4, 6, 8, 12]
    for path in found[2:]:
        shutil.rmtree(path)
    shutil.rmtree(found[1])
    (directory / "checkpoints" / "best").unlink()
    resumed(directory, {})
    assert [line["loss_hex"] for line in read_lines(directory / "metrics.jsonl")] == [
        line["loss_hex"] for line in read_lines(small_run / "metrics.jsonl")
    ]


def again(data: Path, output: Path, *settings: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """Run the command that starts or goes on, and return what was said."""
    lines = Lines()
    run.start(small_runs.request(data, *settings), output, None, False, lines, auto_resume=True, overrides=overrides)
    return lines.lines


def test_one_command_starts_and_goes_on(small_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert not any("resuming" in line for line in again(shapes_tiny, output, "train.max_steps=6"))
    assert any(line.endswith("at step 6 of 12") for line in again(shapes_tiny, output))
    assert [line["loss_hex"] for line in read_lines(output / "metrics.jsonl")] == [
        line["loss_hex"] for line in read_lines(small_run / "metrics.jsonl")
    ]
    (output / "exit.json").unlink()  # as after a kill behind the last checkpoint
    assert any(line.endswith("at step 12 of 12") for line in again(shapes_tiny, output))
    assert json.loads((output / "exit.json").read_text())["code"] == 0
    with pytest.raises(ConfigError, match=r"optimizer\.lr: the run has 0\.001, this command 0\.5") as caught:
        again(shapes_tiny, output, "train.optimizer.lr=0.5", "train.epochs=9")
    assert caught.value.code == "C07"


def test_killed_before_its_first_checkpoint_it_starts_anew(shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    again(shapes_tiny, output, "train.max_steps=1")
    for path in (output / "checkpoints").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (output / "checkpoints" / ".tmp-1-0").mkdir()  # what was written of it
    again(shapes_tiny, output, "train.max_steps=2")
    assert [line["step"] for line in read_lines(output / "metrics.jsonl")] == [1, 2]
    assert not list((output / "checkpoints").glob(".tmp-*"))


def test_a_broken_checkpoint_is_no_reason_to_start_anew_c10(shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    again(shapes_tiny, output, "train.max_steps=1")
    (only,) = (output / "checkpoints").glob("step-*")
    (only / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="none of 1 checkpoints can be used"):
        again(shapes_tiny, output, "train.max_steps=2")


def test_a_damaged_pointer_to_the_best_is_said_before_anything_is_trained_k02(own_run: Path) -> None:
    (own_run / "checkpoints" / "best").write_text("step-0000001x\n")
    before = (own_run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="found 'step-0000001x'"):
        run.resume(own_run, {"train.epochs": 3}, Lines())
    assert (own_run / "metrics.jsonl").read_bytes() == before


def test_a_kill_between_saving_and_pointing_at_the_best_loses_nothing_r8(shapes_tiny: Path, tmp_path: Path) -> None:
    directory = small_runs.train(shapes_tiny, tmp_path / "run", "train.save_every=1", "train.keep_last=3").directory
    checkpoints = directory / "checkpoints"
    best, names = (checkpoints / "best").read_bytes(), {path.name for path in checkpoints.iterdir()}
    (checkpoints / "best").unlink()
    shutil.copytree(checkpoints / "step-00000011", checkpoints / "step-00000005")  # what had still to be removed
    with pytest.raises(ConfigError, match="has done all"):
        run.resume(directory, {}, Lines())
    assert (checkpoints / "best").read_bytes() == best
    assert {path.name for path in checkpoints.iterdir()} == names
