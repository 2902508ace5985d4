"""Starting from weights that exist: what fits is taken, what does not is listed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.initial_weights import InitialWeights, build_from_weights, read_initial_weights
from lora_detr.checkpoints.official.keys import to_official
from lora_detr.checkpoints.opened import open_run
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.deploy.strip import strip
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.runs import run
from lora_detr.runs.request import Request, resolve
from lora_detr.structures import Images
from lora_detr.tensor_files import read_tensors
from tests import small_runs
from tests.small_runs import SMALL, Lines

NOISE = [torch.rand(1, 3, 64, 96)]


def classes_of(run_directory: Path) -> CategoryMap:
    return open_run(run_directory, "last").categories


def best_weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(open_run(directory, "best").checkpoint.model)


def parts(names: Sequence[str]) -> set[str]:
    return {".".join(name.split(".")[:3]) for name in names}


def test_a_run_of_the_same_kind_is_taken_as_a_whole(small_run: Path) -> None:
    model, report = build_from_weights(small_runs.config(), classes_of(small_run), read_initial_weights(small_run))
    expected = best_weights(small_run)
    assert (set(report.taken), report.reinitialised, report.unused) == (set(expected), {}, ())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert report.lines() == [f"{len(expected)} of {len(expected)} tensors from {report.source}"]


def test_other_classes_start_with_new_class_heads(small_run: Path) -> None:
    other = CategoryMap((5, 9), ("cat", "dog"))
    model, report = build_from_weights(small_runs.config(), other, read_initial_weights(small_run))
    assert parts(tuple(report.reinitialised)) == {"detector.heads.classes"}
    assert model.detector.num_classes == 2
    (line,) = report.lines()[1:]
    assert line.startswith("re-initialised: detector.heads.classes (6 tensors): the file's classes are 10 (circle, ")
    assert line.endswith("the data's 2 (cat, dog)")


def test_as_many_classes_of_other_names_start_anew_too(small_run: Path) -> None:
    known = classes_of(small_run)
    other = CategoryMap(known.ids, tuple(f"thing {i}" for i in known.ids))
    _, report = build_from_weights(small_runs.config(), other, read_initial_weights(small_run))
    assert parts(tuple(report.reinitialised)) == {"detector.heads.classes"}
    # The ids may differ: labels are what a head predicts.
    renumbered = CategoryMap(tuple(i + 100 for i in known.ids), known.names)
    _, report = build_from_weights(small_runs.config(), renumbered, read_initial_weights(small_run))
    assert report.reinitialised == {}


def test_branches_that_differ_are_listed(small_run: Path) -> None:
    config = small_runs.config("branches.0.rank=2", "branches.2.rank=8")
    _, report = build_from_weights(config, classes_of(small_run), read_initial_weights(small_run))
    assert {name.split(".")[2] for name in report.reinitialised} == {"0", "2"}
    assert set(report.reinitialised.values()) == {"other shapes in the file"}
    without = small_runs.config("branches=[]")
    _, report = build_from_weights(without, classes_of(small_run), read_initial_weights(small_run))
    assert report.reinitialised == {}
    assert parts(report.unused) == {f"branches.members.{i}" for i in range(3)}
    assert report.lines()[1] == f"not used: branches.members ({len(report.unused)} tensors): the model has none"


def test_a_stripped_file_brings_the_detector_and_new_branches(small_run: Path, tmp_path: Path) -> None:
    images = [Images(NOISE[0], torch.zeros(1, 64, 96, dtype=torch.bool), torch.tensor([[64, 96]]))]
    file = tmp_path / "stripped.safetensors"
    strip(open_run(small_run), file, images, "noise")
    model, report = build_from_weights(small_runs.config(), classes_of(small_run), read_initial_weights(file))
    assert all(name.startswith("branches.") for name in report.reinitialised)
    assert set(report.reinitialised.values()) == {"not in the file"}
    expected = best_weights(small_run)
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in report.taken)


def test_an_official_file_is_read_by_its_own_names(small_run: Path, tmp_path: Path) -> None:
    named = {to_official(name) or name: tensor for name, tensor in best_weights(small_run).items()}
    named["transformer.decoder.class_embed.0.bias"] = named["class_embed.0.bias"]
    named["something.else"] = torch.zeros(2)
    file = tmp_path / "official.pth"
    torch.save({"model": named, "args": argparse.Namespace(lr=1e-4), "epoch": 11}, file)
    weights = read_initial_weights(file)
    assert weights.categories is None
    _, report = build_from_weights(small_runs.config(), classes_of(small_run), weights)
    assert report.unused == ("something.else",)
    assert not [name for name in report.reinitialised if not name.startswith("detector.backbone.")]


def test_a_file_that_would_run_code_is_refused_k05(tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return open, (str(sentinel), "w")

    file = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, file)
    with pytest.raises(CheckpointError) as caught:
        read_initial_weights(file)
    assert (caught.value.code, caught.value.exit_code) == ("K05", 4)
    assert not sentinel.exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], {"model": {"a": torch.tensor([float("nan")])}}])
def test_official_files_without_usable_weights_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_initial_weights(tmp_path / "file.pth")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="expected a run, a checkpoint folder"):
        read_initial_weights(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_initial_weights(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_initial_weights(tmp_path / "absent.safetensors")


def test_weights_of_another_architecture_are_refused(small_run: Path) -> None:
    strange = InitialWeights("strange.pth", {"a.b": torch.zeros(3)}, None)
    with pytest.raises(CheckpointError, match="none of its 1 tensors fits"):
        build_from_weights(small_runs.config(), classes_of(small_run), strange)


def test_a_run_starts_from_another_ones_weights_and_settings(
    small_run: Path, learned_data: Path, tmp_path: Path
) -> None:
    # Settings come with the weights: the preset need not be named again.
    resolved = resolve(Request(weights=small_run, data=learned_data, named={"train.max_steps": 1}))
    assert resolved.run_name == "small-tuned"
    config = resolved.loaded.config
    assert (config.model.hidden_dim, len(config.branches), config.train.epochs) == (32, 3, 2)
    assert config.weights == str(small_run)
    shown = Lines()
    directory = run.start(resolved, tmp_path / "run", None, dry_run=False, display=shown).directory
    total = len(best_weights(small_run))
    (line,) = [line for line in shown.lines if line.startswith("weights     ")]
    assert line == f"weights     {total} of {total} tensors from {small_run} ({open_run(small_run).path.name})"
    assert any("(weights given)" in line for line in shown.lines)
    listed = json.loads((directory / "weights.json").read_text())
    assert len(listed["taken"]) == total
    # One step at a rate of 1e-3 moves each weight by 1e-3 at most: they started where the other run ended.
    after = read_tensors(directory / "checkpoints" / "step-00000001" / "model.safetensors")[0]
    before = best_weights(small_run)
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 2e-3


def test_settings_that_are_named_are_stronger(small_run: Path, learned_data: Path, tmp_path: Path) -> None:
    resolved = resolve(Request(weights=small_run, data=learned_data, aux=1, overrides=("train.optimizer.lr=5e-4",)))
    assert len(resolved.loaded.config.branches) == 1
    assert resolved.loaded.config.train.optimizer.lr == 5e-4
    few = tmp_path / "few.yaml"
    few.write_text("train: {max_steps: 7}\n")
    assert resolve(Request(weights=small_run, data=learned_data, files=(few,))).loaded.config.train.max_steps == 7
    again = resolve(Request(preset=str(small_run / "config.yaml"), data=learned_data))
    assert (again.run_name, again.loaded.config.weights) == ("small-again", None)
    resolved = resolve(Request(weights=small_run, data=learned_data, preset=str(SMALL)))
    assert (resolved.run_name, resolved.loaded.config.weights) == ("small", str(small_run))


@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [("stripped.safetensors", "brings no settings", "--preset"), ("absent", "does not exist", "check the path")],
)
def test_weights_that_name_no_settings_need_a_preset(name: str, message: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "stripped.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(Request(weights=tmp_path / name, data=tmp_path))
    assert remedy in caught.value.remedy
