"""Checkpoints survive what can happen to a process, a disk and a file."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.checkpoints import checkpoint as module
from lora_detr.checkpoints.checkpoint import (
    best_step,
    clean_stale,
    latest,
    load_checkpoint,
    load_latest,
    prune,
    resolve_checkpoint,
    save_checkpoint,
    set_best,
)
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.errors import CheckpointError, NumericalError, OutputError
from tests.limits import file_size_limit

STATE = TrainingState(config={"epoch": 1, "history": [1, None, True, "x"]}, optimizer={}, best=0.1 + 0.2, kept=(1, 6))


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "detector.weight": torch.randn(4, 3, generator=generator),
        "branches.a": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(step),
        "empty": torch.zeros(0, 2),
    }


def save(directory: Path, step: int, ema: bool = False) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        model=tensors(step),
        optimizer={"state.0.exp_avg": torch.full((3,), float(step))},
        state=STATE,
        ema=tensors(step + 1000) if ema else None,
        facts={"world_size": 1, "config_hash": "abc"},
    )


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, with_optimizer=True)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_exact(tmp_path: Path, ema: bool) -> None:
    path = save(tmp_path, 42, ema)
    assert path == tmp_path / "step-00000042"
    loaded = load_checkpoint(path, with_optimizer=True)
    assert loaded.step == 42
    assert loaded.state == STATE
    assert loaded.model.keys() == tensors(42).keys()
    for name, tensor in tensors(42).items():
        assert loaded.model[name].dtype == tensor.dtype
        assert torch.equal(loaded.model[name], tensor)
    assert torch.equal(loaded.optimizer["state.0.exp_avg"], torch.full((3,), 42.0))
    assert (loaded.ema is not None) == ema
    assert loaded.manifest.facts["world_size"] == 1
    assert loaded.manifest.facts["torch"] == torch.__version__
    assert load_checkpoint(path, with_optimizer=False).optimizer == {}


def test_truncated_k01(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else 1
        for length in {len(data) * i // 20 for i in range(20)} | {7, 8, header, header - 1, len(data) - 1}:
            file.write_bytes(data[:length])
            assert refused(path).code in ("K01", "K03")
        file.write_bytes(data)
    load_checkpoint(path, with_optimizer=True)


def test_extended_k01(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert refused(path).code == "K01"


def test_a_missing_file_k01(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").unlink()
    assert refused(path).code == "K01"


def test_resume_skips_and_names_what_is_broken_k01(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"short")
    (tmp_path / "step-00000002" / "MANIFEST.json").unlink()
    loaded, skipped = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert ["step-00000003" in skipped[0].message, "step-00000002" in skipped[1].message] == [True, True]


def test_only_broken_checkpoints_are_an_error_and_none_at_all_is_none_c10(tmp_path: Path) -> None:
    assert load_latest(tmp_path) == (None, ())
    assert latest(tmp_path) is None
    (save(tmp_path, 1) / "MANIFEST.json").unlink()
    for find in (load_latest, latest):
        with pytest.raises(CheckpointError) as caught:
            find(tmp_path)
        assert caught.value.code == "C10"


def test_one_bit_flipped_k02(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    generator = torch.Generator().manual_seed(0)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for position in torch.randint(len(data) * 8, (75,), generator=generator).tolist():
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << position % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                load_checkpoint(path, with_optimizer=True)
        file.write_bytes(data)


def test_manifest_missing_or_edited_k03(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = path / "MANIFEST.json"
    content = json.loads(manifest.read_text())
    for change in ({"step": 2}, {"files": {}}, {"sha256": "0" * 64}, {"files": {"../x": {"bytes": 0, "sha256": ""}}}):
        manifest.write_text(json.dumps({**content, **change}, indent=1, sort_keys=True) + "\n")
        assert refused(path).code == "K03"
    for text in ("", "[]", "null", "{}", "[" * 100_000):
        manifest.write_text(text)
        assert refused(path).code == "K03"
    manifest.unlink()
    assert refused(path).code == "K03"


def test_nan_in_a_saved_file_is_refused_k10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_detr.tensor_files.first_non_finite", lambda tensors: None)
    poisoned = {**tensors(1), "detector.weight": torch.tensor([1.0, float("nan"), float("inf")])}
    path = save_checkpoint(tmp_path, step=1, model=poisoned, optimizer={}, state=TrainingState(), facts={})
    monkeypatch.undo()
    error = refused(path)
    assert error.code == "K10"
    assert "'detector.weight' has 2 of 3 values" in error.message


def test_newer_format_k13(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = path / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 7}))
    error = refused(path)
    assert error.code == "K13"
    assert "format 7 is newer than 1" in error.message


def test_model_and_optimizer_of_different_steps_k14(tmp_path: Path) -> None:
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copy(one / "optim.safetensors", two / "optim.safetensors")
    assert refused(two).code == "K02"


def test_file_modes_follow_the_umask_k15(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = save(tmp_path, 1)
        set_best(tmp_path, 1)
    finally:
        os.umask(old)
    files = [*path.iterdir(), tmp_path / "best"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}


def test_non_finite_weights_are_not_saved_n03(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for part in ("model", "optimizer", "ema"):
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
        parts[part] = {"w": torch.tensor([0.0, float("inf")])}
        with pytest.raises(NumericalError, match="'w' has 1 of 2") as caught:
            save_checkpoint(tmp_path, step=2, state=TrainingState(), facts={}, **parts)
        assert caught.value.exit_code == 6
    assert names(tmp_path) == ["step-00000001"]


def test_disk_full_at_many_levels_keeps_the_old_checkpoint_p11(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    largest = max(file.stat().st_size for file in path.iterdir())
    for level in range(20):
        for step in (1, 2):
            with file_size_limit(largest * level // 20), pytest.raises(OutputError) as caught:
                save(tmp_path, step)
            assert caught.value.exit_code == 5
            assert str(tmp_path) in caught.value.message
        assert names(tmp_path) == ["step-00000001"]
        load_checkpoint(path, with_optimizer=True)


def test_what_does_not_read_back_is_not_published_p11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_new", lambda path, data: path.write_bytes(data[:-1]))
    with pytest.raises(OutputError, match="does not read back"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


def test_missing_directory_and_path_that_is_a_file_p14(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(OutputError, match=directory.name):
            save(directory, 1)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_checkpoint(tmp_path, step=1, model={"x": torch.ones(1)}, optimizer={}, state=TrainingState(), facts={})
    assert names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001", with_optimizer=False).model.keys() == {"x"}


@pytest.mark.parametrize("instant", ["before", "after"])
def test_killed_while_a_step_is_replaced_p01(tmp_path: Path, instant: str) -> None:
    path = save(tmp_path, 1)
    replaced = path.rename(tmp_path / "step-00000001.replaced")
    if instant == "after":
        shutil.copytree(replaced, path)
        (replaced / "MANIFEST.json").unlink()
    assert latest(tmp_path) == (path if instant == "after" else replaced)
    clean_stale(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
    load_checkpoint(path, with_optimizer=True)


def test_stale_files_are_removed_and_links_not_followed_p01(tmp_path: Path) -> None:
    directory, victim = tmp_path / "checkpoints", tmp_path / "victim"
    for path in (directory, victim, directory / ".tmp-1-0"):
        path.mkdir()
    for path in (victim / "file", directory / ".tmp-1-0" / "model.safetensors", directory / ".tmp-1-1"):
        path.write_text("x")
    (directory / ".tmp-2-0").symlink_to(victim)
    save(directory, 1)
    assert len(clean_stale(directory)) == 3
    assert names(directory) == ["step-00000001"]
    assert names(victim) == ["file"]
    assert clean_stale(tmp_path / "missing") == []


def test_prune_keeps_the_newest_the_best_and_the_chosen(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    set_best(tmp_path, 2)
    removed = prune(tmp_path, keep_last=2, keep={4})
    assert [path.name[-1] for path in removed] == ["5", "3", "1"]
    assert names(tmp_path) == ["best", *(f"step-{step:08d}" for step in (2, 4, 6, 7))]
    assert prune(tmp_path, keep_last=9) == []
    with pytest.raises(ValueError, match="keep_last"):
        prune(tmp_path, keep_last=0)


def test_prune_removes_nothing_unless_the_newest_verifies(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        prune(tmp_path, keep_last=1)
    assert len(names(tmp_path)) == 2


def test_best_points_at_a_checkpoint_there_is(tmp_path: Path) -> None:
    assert best_step(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        set_best(tmp_path, 5)
    save(tmp_path, 5)
    set_best(tmp_path, 5)
    assert best_step(tmp_path) == 5
    (tmp_path / "best").write_text("../../elsewhere")
    with pytest.raises(CheckpointError, match="elsewhere"):
        best_step(tmp_path)


def test_a_changed_pointer_leads_to_no_other_checkpoint_k02(tmp_path: Path) -> None:
    for step in (4, 5):
        save(tmp_path, step)
    set_best(tmp_path, 5)
    pointer = (tmp_path / "best").read_bytes()
    for bit in range(len(pointer) * 8):
        damaged = bytearray(pointer)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "best").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="expected the name of a checkpoint"):
            best_step(tmp_path)
    for text in ("step-00000004", "step-00000004\n"):  # as a user writes it
        (tmp_path / "best").write_text(text)
        assert best_step(tmp_path) == 4


def test_order_is_by_step_and_not_by_time(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        os.utime(save(tmp_path, step), (0, 1_000_000 // step))
    assert latest(tmp_path) == tmp_path / "step-00000010"


def test_resolve_takes_a_run_a_folder_of_checkpoints_or_a_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    for step in (1, 2):
        save(directory, step)
    one, two = directory / "step-00000001", directory / "step-00000002"
    assert resolve_checkpoint(tmp_path) == two
    set_best(directory, 1)
    assert resolve_checkpoint(tmp_path) == one
    assert resolve_checkpoint(directory) == one
    assert resolve_checkpoint(tmp_path, "last") == two
    assert resolve_checkpoint(two) == two
    shutil.rmtree(one)
    with pytest.raises(CheckpointError, match="best checkpoint, of step 1"):
        resolve_checkpoint(tmp_path)


def test_resolve_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, reason in (("missing", "does not exist"), ("file", "is a file"), ("", "holds no checkpoint")):
        with pytest.raises(CheckpointError, match=reason):
            resolve_checkpoint(tmp_path / name)


def test_no_path_host_or_user_in_a_checkpoint_x11(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in path.iterdir():
        data = file.read_bytes()
        for secret in (str(tmp_path), os.uname().nodename, os.environ.get("HOME", "/home/")):
            assert secret.encode() not in data
