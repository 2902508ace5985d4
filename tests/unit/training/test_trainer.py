"""Whole runs: they repeat bit for bit, go on where they stopped, and stop in order."""

from __future__ import annotations

import csv
import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_detr.errors import CheckpointError, ConfigError, DataError, NumericalError, OutputError
from lora_detr.recipe.loaders import train_loader
from lora_detr.records.display import Silent
from lora_detr.runs import run
from lora_detr.tensor_files import read_tensors
from lora_detr.training.trainer import Trainer
from tests import small_runs
from tests.small_runs import Lines, read_lines

SHORT = ("train.max_steps=3",)  # half an epoch


def weights(directory: Path, step: int, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return read_tensors(directory / "checkpoints" / f"step-{step:08d}" / name)[0]


def state(directory: Path, step: int) -> dict[str, Any]:
    path = directory / "checkpoints" / f"step-{step:08d}" / "state.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(directory: Path) -> list[str]:
    return [record["loss_hex"] for record in read_lines(directory / "metrics.jsonl")]


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def data(shapes_tiny: Path, tmp_path: Path) -> Path:
    """A copy of the shared images that a test may change."""
    return Path(shutil.copytree(shapes_tiny, tmp_path / "data"))


def test_the_same_seed_gives_the_same_bits_r1(small_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    again = small_runs.train(shapes_tiny, tmp_path / "again", *SHORT).directory
    assert losses(again) == losses(small_run)[:3]
    other = small_runs.train(shapes_tiny, tmp_path / "other", *SHORT, "train.seed=43").directory
    assert losses(other)[0] != losses(small_run)[0]
    third = small_runs.train(shapes_tiny, tmp_path / "third", *SHORT).directory
    for name in ("model.safetensors", "optim.safetensors"):
        assert same_bits(weights(again, 3, name), weights(third, 3, name))
        assert not same_bits(weights(again, 3, name), weights(other, 3, name))


@pytest.mark.parametrize("stop", [1, 3, 6, 7, 11])
def test_a_resumed_run_equals_an_uninterrupted_one_r2(
    stop: int, small_run: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    # Stops inside an epoch, at its end, and inside the next; dropout and the candidate cap draw random numbers.
    directory = small_runs.train(shapes_tiny, tmp_path / "run", f"train.max_steps={stop}").directory
    assert len(losses(directory)) == stop
    torch.manual_seed(123)  # a new process starts from another state
    finished = run.resume(directory, {"train.max_steps": 12}, Lines())
    assert losses(directory) == losses(small_run)
    for name in ("model.safetensors", "optim.safetensors"):
        assert same_bits(weights(directory, 12, name), weights(small_run, 12, name))
    for key in ("rng", "optimizer", "metrics"):
        assert state(directory, 12)[key] == state(small_run, 12)[key]
    assert finished.metrics is not None
    stored = json.loads((small_run / "eval" / "metrics.json").read_text())
    assert {"checkpoint": "step-00000012", **finished.metrics.to_json()} == stored


def test_resuming_for_more_epochs(own_run: Path) -> None:
    finished = run.resume(own_run, {"train.epochs": 3}, lines := Lines())
    assert lines.lines[0] == f"resuming {own_run} at step 12 of 18"
    assert finished.directory == own_run
    assert [record["step"] for record in read_lines(own_run / "metrics.jsonl")] == list(range(1, 19))
    assert [record["epoch"] for record in read_lines(own_run / "log.txt")] == [0, 1, 2]
    with pytest.raises(ConfigError, match="has done all of its 18 steps"):
        run.resume(own_run, {}, Lines())


def test_a_run_without_branches_is_trained_by_the_same_code(shapes_tiny: Path, tmp_path: Path) -> None:
    directory = small_runs.train(shapes_tiny, tmp_path / "run", *SHORT, "branches=[]").directory
    record = read_lines(directory / "metrics.jsonl")[-1]
    assert {name.partition("/")[0] for name in record["terms"]} == {"primary", "encoder"}
    assert all(name.startswith("detector.") for name in weights(directory, 3))


def test_the_detector_starts_the_same_with_and_without_branches(shapes_tiny: Path, tmp_path: Path) -> None:
    # A comparison of both then differs by the branches alone. They are built last, so they draw after the detector.
    overrides = (*small_runs.WITHOUT_CHANCE[:1], "train.max_steps=1")
    runs = [
        small_runs.train(shapes_tiny, tmp_path / name, *overrides, *more).directory
        for name, more in (("with", ()), ("without", ("branches=[]",)))
    ]
    first, second = (read_lines(directory / "metrics.jsonl")[0]["terms"] for directory in runs)
    assert second.items() <= first.items()


def test_the_run_directory_holds_what_the_documentation_lists(small_run: Path) -> None:
    names = set(content(small_run))
    parts = {"MANIFEST.json", "model.safetensors", "optim.safetensors", "state.json"}
    assert names == {
        "checkpoints/best",
        *(f"checkpoints/step-{step:08d}/{part}" for step in (6, 12) for part in parts),
        *("command.txt", "config.yaml", "data_report.json", "env.json", "exit.json", ".lock"),
        *(f"eval/{name}" for name in ("metrics.json", "per_class.csv", "predictions.json")),
        *("log.txt", "metrics.jsonl", "results.csv", "results.png"),
    }


def test_what_the_files_of_a_run_say(small_run: Path) -> None:
    settings = (small_run / "config.yaml").read_text(encoding="utf-8")
    assert "hidden_dim: 32  # preset small" in settings
    assert "# schema" in settings
    assert (small_run / "command.txt").read_text(encoding="utf-8").startswith("loradetr")
    environment = json.loads((small_run / "env.json").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert environment["threads"] == torch.get_num_threads()
    report = json.loads((small_run / "data_report.json").read_text())
    assert (report["train"]["images"], report["val"]["images"]) == (12, 6)
    assert json.loads((small_run / "exit.json").read_text()) == {
        "code": 0,
        "class": "Done",
        "rank": 0,
        "step": 12,
        "message": "all steps done",
        "last_checkpoint": "step-00000012",
    }


def test_metrics_have_every_term_by_source_layer_and_kind(small_run: Path) -> None:
    records = read_lines(small_run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    sources = [f"{source}/layer{i}" for source in ("primary", "branch0", "branch1", "branch2") for i in (0, 1)]
    wanted = {f"{source}/{kind}" for source in [*sources, "encoder"] for kind in ("class", "l1", "giou")}
    for record in records:
        assert set(record["terms"]) == wanted
        assert all(math.isfinite(value) for value in record["terms"].values())
        assert float.fromhex(record["loss_hex"]) == record["loss"]
        assert record["lr"] == {"group0": pytest.approx(1e-3), "group1": pytest.approx(1e-4)}
        assert record["gradient_norm"] > 0


def test_the_log_has_the_keys_that_plot_scripts_of_the_family_read(small_run: Path) -> None:
    records, steps = read_lines(small_run / "log.txt"), read_lines(small_run / "metrics.jsonl")
    assert [(record["epoch"], record["step"]) for record in records] == [(0, 6), (1, 12)]
    for record in records:
        assert len(record["test_coco_eval_bbox"]) == 12
        assert record["n_parameters"] > 0
        of_epoch = [step for step in steps if step["epoch"] == record["epoch"]]
        for key, name in (("train_loss_ce", "class"), ("train_loss_bbox", "l1"), ("train_loss_giou", "giou")):
            weight = small_runs.config().loss.primary.weights.by_kind()[name]
            for layer, suffix in enumerate(("_0", "")):
                mean = sum(step["terms"][f"primary/layer{layer}/{name}"] for step in of_epoch) / len(of_epoch)
                assert record[f"{key}{suffix}_unscaled"] == pytest.approx(mean)
                assert record[f"{key}{suffix}"] == pytest.approx(weight * mean)
        assert record["train_loss"] == pytest.approx(sum(step["loss"] for step in of_epoch) / len(of_epoch))
        assert record["train_padding"] == 0  # the small run makes all images square
    header, *rows = (small_run / "results.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("epoch,step,time,loss,lr,AP,AP50,AP75,")
    assert [row.split(",")[:2] for row in rows] == [["1", "6"], ["2", "12"]]


def test_padding_is_told_and_grouping_by_shape_saves_some(shapes_tiny: Path, tmp_path: Path) -> None:
    uneven = ("data.train.square=false", "train.epochs=1", "data.size_divisor=32")
    shares = []
    for grouped in ("false", "true"):
        settings = (*uneven, f"data.group_by_shape={grouped}")
        lines = Lines()
        directory = small_runs.train(shapes_tiny, tmp_path / grouped, *settings, display=lines).directory
        (record,) = read_lines(directory / "log.txt")
        config = small_runs.request(shapes_tiny, *settings).loaded.config
        loader = train_loader(small_runs.splits_of(shapes_tiny, config), config, small_runs.ALONE)
        paddings = [batch.images.padding for batch in loader]
        share = sum(int(padding.sum()) for padding in paddings) / sum(padding.numel() for padding in paddings)
        assert record["train_padding"] == pytest.approx(share)
        (line,) = [line for line in lines.lines if line.startswith("epoch 1/1")]
        assert line.endswith(f"  padding {share:.2f}")
        shares.append(share)
    assert shares[1] < 0.8 * shares[0]


def test_a_run_grouped_by_shape_goes_on_within_an_epoch_r2(shapes_tiny: Path, tmp_path: Path) -> None:
    settings = ("data.train.square=false", "data.group_by_shape=true", "train.epochs=1", "train.save_every=2")
    whole = small_runs.train(shapes_tiny, tmp_path / "whole", *settings, "train.keep_last=9").directory
    stopped = Path(shutil.copytree(whole, tmp_path / "stopped"))
    for step in (4, 6):
        shutil.rmtree(stopped / "checkpoints" / f"step-{step:08d}")
    (stopped / "checkpoints" / "best").unlink()
    run.resume(stopped, {}, lines := Lines())
    assert lines.lines[0].endswith("at step 2 of 6")
    assert losses(stopped) == losses(whole)
    # Among it the share of padding, whose counts are in the checkpoint.
    assert (stopped / "log.txt").read_bytes() == (whole / "log.txt").read_bytes()


def test_old_checkpoints_go_and_the_best_stays(learned_run: Path) -> None:
    # Evaluated, and so saved, at 10, 20, 30 and 40.
    rows = csv.DictReader((learned_run / "results.csv").open(encoding="utf-8"))
    best = max(rows, key=lambda row: float(row["AP"]))["step"]
    steps = {path.name for path in (learned_run / "checkpoints").glob("step-*")}
    assert steps == {"step-00000030", "step-00000040", f"step-{int(best):08d}"}
    assert (learned_run / "checkpoints" / "best").read_text().split()[0] == f"step-{int(best):08d}"


def test_the_small_network_learns_two_images(learned_run: Path) -> None:
    metrics = json.loads((learned_run / "eval" / "metrics.json").read_text())
    assert metrics["AP"] > 0.2
    first, *_, last = read_lines(learned_run / "metrics.jsonl")
    assert last["loss"] < 0.7 * first["loss"]


def test_a_directory_that_is_not_empty_is_refused_and_untouched_c06(own_run: Path, shapes_tiny: Path) -> None:
    before = content(own_run)
    with pytest.raises(ConfigError, match="is not empty; nothing was touched") as caught:
        small_runs.train(shapes_tiny, own_run)
    assert (caught.value.exit_code, caught.value.code) == (2, "C06")
    assert f"--resume {own_run}" in caught.value.remedy
    assert content(own_run) == before


def test_a_fault_before_the_first_step_leaves_no_directory(data: Path, tmp_path: Path) -> None:
    (data / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(DataError):
        small_runs.train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_changed_since_is_refused_c08(data: Path, tmp_path: Path) -> None:
    directory = small_runs.train(data, tmp_path / "run", *SHORT).directory
    before = content(directory)
    path = data / "annotations" / "instances_train.json"
    changed = json.loads(path.read_text())
    gone = changed["images"].pop()["id"]
    changed["annotations"] = [row for row in changed["annotations"] if row["image_id"] != gone]
    path.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="is not what the run started on") as caught:
        run.resume(directory, {"train.max_steps": 4}, Silent())
    assert (caught.value.exit_code, caught.value.code) == (2, "C08")
    assert content(directory) == before


def test_resuming_nothing_c10(tmp_path: Path) -> None:
    for directory in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError) as caught:
            run.resume(directory, {}, Silent())
        assert (caught.value.exit_code, caught.value.code) == (2, "C10")


def test_resuming_where_every_checkpoint_is_broken_c10(own_run: Path) -> None:
    for path in (own_run / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        run.resume(own_run, {"train.epochs": 3}, Silent())
    assert caught.value.exit_code == 4


def test_training_without_a_validation_split(data: Path, tmp_path: Path) -> None:
    (data / "annotations" / "instances_val.json").unlink()
    finished = small_runs.train(data, tmp_path / "run", *SHORT, display=(lines := Lines()))
    assert finished.metrics is None
    (line,) = [line for line in lines.lines if line.startswith("val ")]
    assert "instances_val.json not found; training continues without evaluation" in line
    assert not (finished.directory / "results.csv").exists()
    assert not (finished.directory / "checkpoints" / "best").exists()
    assert state(finished.directory, 3)["metrics"] is None
    assert "test_coco_eval_bbox" not in read_lines(finished.directory / "log.txt")[0]


def test_overfitting_trains_and_evaluates_on_the_first_images_with_objects(shapes_tiny: Path, tmp_path: Path) -> None:
    lines, few = Lines(), "train.max_steps=2"
    finished = small_runs.train(shapes_tiny, tmp_path / "run", few, overfit=3, display=lines)
    splits = small_runs.splits_of(shapes_tiny, small_runs.config())
    chosen = [splits.train.records[i] for i in small_runs.with_objects(splits)[:3]]
    stored = state(finished.directory, 2)
    assert (stored["augment"], stored["overfit"]) == (False, 3)
    assert stored["data"]["train"] == stored["data"]["val"] == splits.train.subset([r.id for r in chosen]).fingerprint
    assert finished.metrics is not None
    counted = sum(row.objects for row in finished.metrics.per_class)
    assert counted == sum(len(record.category_ids) for record in chosen)
    assert any("the same 3 images, without augmentation" in line for line in lines.lines)
    run.resume(finished.directory, {"train.max_steps": 3}, Silent())  # on the same three images
    assert state(finished.directory, 3)["data"] == stored["data"]
    report = json.loads((finished.directory / "data_report.json").read_text())
    assert (report["overfit"], "val" in report) == (3, False)
    # One line for the start, one for the resume.
    assert len((finished.directory / "command.txt").read_text().splitlines()) == 2


def test_no_room_for_a_checkpoint_is_found_before_the_first_step_p13(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(OutputError, match="0 MB are free, 2 MB are needed") as caught:
        small_runs.train(shapes_tiny, tmp_path / "run", *SHORT)
    assert (caught.value.exit_code, caught.value.code) == (5, "P13")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("real_pictures")
def test_a_picture_that_cannot_be_drawn_ends_no_run(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: object) -> None:
        raise ValueError("a backend that is not there")

    monkeypatch.setattr("lora_detr.records.plots.write_results_picture", fail)
    finished = small_runs.train(shapes_tiny, tmp_path / "run", *SHORT, display=(lines := Lines()))
    assert json.loads((finished.directory / "exit.json").read_text())["code"] == 0
    assert "warning: results.png was not drawn: a backend that is not there" in lines.lines


def test_checkpoints_of_every_so_many_epochs_stay_for_good(shapes_tiny: Path, tmp_path: Path) -> None:
    overrides = ("train.keep_every=2", "train.keep_last=1", "train.epochs=5", "evaluation.every=5")
    directory = small_runs.train(shapes_tiny, tmp_path / "run", *overrides).directory
    kept = sorted(path.name for path in (directory / "checkpoints").glob("step-*"))
    assert kept == [f"step-{6 * epoch:08d}" for epoch in (2, 4, 5)]
    assert len((directory / "results.csv").read_text().splitlines()) == 2  # a kept checkpoint is not evaluated for it


def test_a_dry_run_says_everything_and_writes_nothing(shapes_tiny: Path, tmp_path: Path) -> None:
    lines = Lines()
    run.start(small_runs.request(shapes_tiny), tmp_path / "run", None, dry_run=True, display=lines)
    assert not (tmp_path / "run").exists()
    heads = [line.split()[0] for line in lines.lines if not line.startswith(" ")]
    assert heads[:2] == ["preset", "detector"]
    assert {"branch0", "branch1", "branch2", "parameters", "train", "val", "classes", "schedule", "device"} <= set(
        heads
    )


def test_a_dry_run_into_a_folder_that_is_in_use_is_refused_like_the_run(own_run: Path, shapes_tiny: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        run.start(small_runs.request(shapes_tiny), own_run, None, dry_run=True, display=Lines())


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a weight of a branch become NaN in the second epoch, as if training had diverged."""
    train_epoch = Trainer._train_epoch

    def diverging(self: Trainer, epoch: int) -> object:
        if epoch == 1:
            with torch.no_grad():
                self.model.get_parameter("branches.members.2.layers.0.a1").fill_(math.nan)
        return train_epoch(self, epoch)

    monkeypatch.setattr(Trainer, "_train_epoch", diverging)


@pytest.mark.usefixtures("poisoned")
def test_a_run_that_diverges_keeps_its_last_checkpoint_and_tells_why_n01(shapes_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalError) as caught:
        small_runs.train(shapes_tiny, tmp_path / "run")
    assert caught.value.exit_code == 6
    report = json.loads((tmp_path / "run" / "nan_report.json").read_text())
    assert report["step"] == 6
    assert report["message"] == caught.value.message
    assert "branch2/layer0/class is nan" in report["message"]
    (batch,) = report["ranks"][0]["batches"]
    assert len(batch["image_ids"]) == 2
    assert math.isnan(batch["terms"]["branch2/layer0/class"])
    assert math.isfinite(batch["terms"]["primary/layer0/class"])
    ended = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (ended["code"], ended["class"], ended["step"]) == (6, "NonFiniteLossError", 6)
    assert ended["last_checkpoint"] == "step-00000006"
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run", 6).values())
    assert not (tmp_path / "run" / "checkpoints" / "step-00000007").exists()


def test_a_huge_learning_rate_never_saves_a_nan_n14(shapes_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalError):
        small_runs.train(shapes_tiny, tmp_path / "run", "train.optimizer.lr=1e6", "train.epochs=4")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in read_tensors(path)[0].values())
