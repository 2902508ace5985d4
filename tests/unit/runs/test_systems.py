"""Every system beside plain Deformable-DETR: what holds for a run of it, its checkpoint, and what is deployed of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.checkpoints.initial_weights import InitialWeights, build_from_weights
from lora_detr.checkpoints.opened import OpenedRun, open_run
from lora_detr.checkpoints.stripped_file import read_stripped
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.deploy.strip import MERGE_TOLERANCE, strip
from lora_detr.errors import ConfigError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from lora_detr.runs.rehearsal import rehearse
from lora_detr.structures import Images
from lora_detr.tensor_files import read_tensors
from lora_detr.training.freezing import freeze
from lora_detr.training.seeding import rng_state
from lora_detr.training.step import StepResult
from lora_detr.training.trainer import Trainer
from tests import small_runs
from tests.small_runs import Lines, read_lines

HYBRID = ("model.hybrid={num_queries: 15}", "loss.hybrid.repeats=3")
# Name -> preset and changes. Dropout draws random numbers where nothing else does.
SYSTEMS: dict[str, tuple[str, ...]] = {
    "deformable-pp": ("deformable-pp-tiny-lora3",),
    "relation": ("relation-tiny", "train.ema_decay=0.9"),
    "relation-lora3": ("relation-tiny-lora3",),
    "ms-detr": ("ms-detr-tiny", "model.dropout=0.1"),
    "ffn3": ("deformable-tiny-ffn3",),
    "hybrid": ("deformable-pp-tiny", "model.dropout=0.1", *HYBRID),
    "hybrid and dac": ("deformable-tiny", "model.dac=true", *HYBRID),
}
per_system = pytest.mark.parametrize("system", SYSTEMS)
CLASSES = CategoryMap((1, 2, 3), ("cat", "dog", "owl"))


def config_of(system: str, *overrides: str) -> RunConfig:
    preset, *changes = SYSTEMS[system]
    return small_runs.reduced(preset, Path("nowhere"), *changes, *overrides).loaded.config


def train(system: str, data: Path, output: Path, *overrides: str) -> Path:
    preset, *changes = SYSTEMS[system]
    resolved = small_runs.reduced(preset, data, *changes, *overrides)
    return run.start(resolved, output, None, dry_run=False, display=Lines()).directory


def losses(directory: Path) -> list[str]:
    return [record["loss_hex"] for record in read_lines(directory / "metrics.jsonl")]


def stored(directory: Path, step: int) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint: weights, their average, state of the optimiser."""
    files = (directory / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in read_tensors(path)[0].items()}


class Runs:
    """A run of four steps of each system, trained when it is first asked for. Shared: do not write into it."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def __call__(self, system: str) -> Path:
        """Return the directory of the run of a system."""
        directory = self.folder / system
        return directory if directory.is_dir() else train(system, self.data, directory, "train.max_steps=4")


@pytest.fixture(scope="module")
def run_of(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of all systems."""
    return Runs(shapes_tiny, tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="module")
def images() -> list[Images]:
    """One image, and a padded pair."""
    pixels, padding = torch.randn(2, 3, 97, 64), torch.zeros(2, 97, 64, dtype=torch.bool)
    pixels[1, :, :, 33:], padding[1, :, 33:] = 0.0, True
    alone = Images(pixels[:1], padding[:1], torch.tensor([[97, 64]]))
    return [alone, Images(pixels, padding, torch.tensor([[97, 64], [97, 33]]))]


@pytest.mark.parametrize(
    "system",
    [
        *("relation-lora3", "ms-detr", "hybrid and dac"),
        *(pytest.param(system, marks=pytest.mark.slow) for system in ("deformable-pp", "relation", "ffn3", "hybrid")),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_r2(
    system: str, run_of: Runs, shapes_tiny: Path, tmp_path: Path
) -> None:
    directory = train(system, shapes_tiny, tmp_path / "run", "train.max_steps=2")
    assert losses(directory) == losses(run_of(system))[:2]  # the same seed gives the same bits
    torch.manual_seed(123)  # a new process starts from another state
    run.resume(directory, {"train.max_steps": 4}, Lines())
    assert losses(directory) == losses(run_of(system))
    found, expected = stored(directory, 4), stored(run_of(system), 4)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def test_the_noise_of_denoising_queries_follows_the_random_state(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from other random states the run goes another way, so the test above would notice a lost one."""
    following = set()
    for seed in (1, 2):
        monkeypatch.setattr("lora_detr.training.seeding.restore_rng_state", partial(reseed, seed))
        directory = Path(shutil.copytree(run_of("relation"), tmp_path / f"run{seed}"))
        run.resume(directory, {"train.max_steps": 5}, Lines())
        following.add(losses(directory)[4])
    assert len(following) == 2


def reseed(seed: int, state: object) -> None:
    torch.manual_seed(seed)


@per_system
def test_metrics_name_every_group_and_branch(system: str, run_of: Runs) -> None:
    config = config_of(system)
    expected = {"primary", "encoder", *config.branch_names}
    expected |= {"denoising"} if config.model.has_denoising else set()
    expected |= {"hybrid"} if config.model.hybrid is not None else set()
    expected |= {"hybrid_encoder"} if system.startswith("relation") else set()
    expected |= {"dac"} if config.model.dac else set()
    for record in read_lines(run_of(system) / "metrics.jsonl"):
        assert {name.partition("/")[0] for name in record["terms"]} == expected


@pytest.mark.parametrize("system", ["relation", "relation-lora3", "ms-detr", "ffn3", "hybrid", "hybrid and dac"])
def test_what_is_deployed_is_the_detector_built_for_inference(
    system: str, run_of: Runs, images: list[Images], tmp_path: Path
) -> None:
    opened = open_run(run_of(system))
    path = tmp_path / "stripped.safetensors"
    report = strip(opened, path, images, "noise")
    assert report.largest_difference == 0.0
    assert report.outputs_sha256[0] == report.outputs_sha256[1]
    assert report.averaged == (opened.config.train.ema_decay is not None)
    tensors, _ = read_tensors(path)
    plain = opened.config.model.for_inference().build(opened.categories.num_classes, load_weights=False)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }
    assert not [name for name in tensors if "query_groups" in name or "branch" in name]
    groups = sum(p.numel() for p in opened.model.detector.query_groups.parameters())
    branches = sum(p.numel() for p in opened.model.branches.parameters())
    assert report.parameters_before - report.parameters_after == groups + branches
    deployed = read_stripped(path).detector
    with torch.no_grad():
        for batch in images:
            output, _ = opened.model(batch)
            found = deployed(batch).prediction
            assert torch.equal(found.logits, output.prediction.logits)
            assert torch.equal(found.boxes, output.prediction.boxes)


@pytest.mark.parametrize(("system", "branch"), [("relation-lora3", 2), ("ffn3", 1)])
def test_a_branch_becomes_the_last_layer(
    system: str, branch: int, run_of: Runs, images: list[Images], tmp_path: Path
) -> None:
    opened = open_run(run_of(system))
    path = tmp_path / "branch.safetensors"
    report = strip(opened, path, images, "noise", branch)
    assert report.branch == str(branch)
    assert 0 <= report.largest_difference <= MERGE_TOLERANCE
    own = opened.model.detector.state_dict()
    changed = {name for name, tensor in read_tensors(path)[0].items() if not torch.equal(tensor, own[name])}
    assert changed
    assert all(name.startswith("decoder.layers.1.ffn.") for name in changed)
    assert any(".norm." in name for name in changed) == (system == "ffn3")
    deployed = read_stripped(path).detector
    with torch.no_grad():
        output, branches = opened.model(images[0])
        found = deployed(images[0]).prediction
    assert branches is not None
    assert torch.allclose(found.logits, branches.layers[-1].logits[branch], rtol=0, atol=MERGE_TOLERANCE)
    assert torch.allclose(found.boxes, branches.layers[-1].boxes[branch], rtol=0, atol=MERGE_TOLERANCE)
    assert not torch.allclose(found.logits, output.prediction.logits, rtol=0, atol=MERGE_TOLERANCE)


def test_a_branch_that_reads_another_feature_cannot_be_deployed(
    run_of: Runs, images: list[Images], tmp_path: Path
) -> None:
    opened: OpenedRun = open_run(run_of("ms-detr"))
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    with pytest.raises(ConfigError, match="cross-ffn") as caught:
        strip(opened, tmp_path / "new" / "branch.safetensors", images, "noise", branch=0)
    assert caught.value.exit_code == 2
    assert "leave --branch out" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.model.state_dict().items())


@per_system
def test_a_rehearsal_leaves_no_trace(system: str, shapes_tiny: Path, tmp_path: Path) -> None:
    config = config_of(system)
    splits = small_runs.splits_of(shapes_tiny, config)
    model = config.build_model(splits.categories.num_classes, load_weights=False)
    trainer = Trainer(config, splits, model, RunDirectory(tmp_path), small_runs.ALONE, Lines())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, modes = rng_state(), [module.training for module in model.modules()]
    cost = rehearse(trainer)
    assert cost is not None and cost.seconds > 0
    assert rng_state() == random
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(tmp_path.iterdir())


WITHOUT_CHANCE = ("model.dropout=0.0", "train.optimizer.clip_norm=null")
# Noise of denoising queries is drawn for a batch as a whole, so that no two divisions of it draw the same.
ALIKE: dict[str, tuple[str, ...]] = {
    "hybrid and dac": ("loss.dac.matcher.positive_fraction=null",),
    "hybrid": (),
    "ms-detr": ("branches.0.matcher.positive_fraction=null",),
    "relation": ("model.denoising=null", "train.ema_decay=null"),
}


@pytest.mark.parametrize("system", ALIKE)
def test_two_batches_of_one_image_equal_one_batch_of_two(system: str, shapes_tiny: Path) -> None:
    config = config_of(system, *WITHOUT_CHANCE, *ALIKE[system])
    splits = small_runs.splits_of(shapes_tiny, config)
    counts = [len(record.category_ids) for record in splits.train.records]
    first = small_runs.with_objects(splits)[0]
    second = next(i for i in small_runs.with_objects(splits) if counts[i] != counts[first])

    def step(groups: Sequence[Sequence[int]]) -> tuple[StepResult, dict[str, Tensor]]:
        stepper = small_runs.stepper(config, splits.categories.num_classes)
        result = stepper([small_runs.batch_of(splits, config, group) for group in groups], 0)
        return result, {name: p.grad for name, p in stepper.model.named_parameters() if p.grad is not None}

    whole, expected = step([[first, second]])
    parts, found = step([[first], [second]])
    assert {term.key.source for term in whole.terms} >= {"primary", "encoder"}
    for a, b in zip(parts.terms, whole.terms, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5, abs=1e-7), a.key
    assert found.keys() == expected.keys()
    difference = torch.stack([(found[name] - expected[name]).norm() for name in expected]).norm()
    assert difference <= 1e-5 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()


@per_system
def test_a_step_in_half_precision(system: str, shapes_tiny: Path) -> None:
    """Losses are computed in float32 whatever the forward pass is; a query group is no exception."""
    config = config_of(system, "train.precision=bf16")
    splits = small_runs.splits_of(shapes_tiny, config)
    stepper = small_runs.stepper(config, splits.categories.num_classes)
    result = stepper([small_runs.batch_of(splits, config, small_runs.with_objects(splits)[:2])], 0)
    assert not result.skipped
    exact = small_runs.stepper(config_of(system), splits.categories.num_classes)
    expected = exact([small_runs.batch_of(splits, config, small_runs.with_objects(splits)[:2])], 0)
    assert result.loss == pytest.approx(expected.loss, rel=0.1)


@per_system
def test_heads_and_tables_of_other_classes_start_anew(system: str) -> None:
    """As many classes of other names: what depends on the number of classes is not taken, and all else is."""
    config = config_of(system)
    shapes = {n: tensor.shape for n, tensor in config.build_model(3, load_weights=False).state_dict().items()}
    wider = config.build_model(4, load_weights=False).state_dict()
    of_classes = {name for name, tensor in wider.items() if tensor.shape != shapes[name]}
    assert any(name.startswith("detector.heads.classes.") for name in of_classes)
    assert any("query_groups" in name for name in of_classes) == system.startswith("relation")

    weights = InitialWeights("other", config.build_model(3, load_weights=False).state_dict(), CLASSES)
    other = CategoryMap(CLASSES.ids, ("red", "green", "blue"))
    model, report = build_from_weights(config, other, weights)
    assert set(report.reinitialised) == of_classes
    assert all("the file's classes are 3 (cat, dog, owl)" in reason for reason in report.reinitialised.values())
    assert set(report.taken) == shapes.keys() - of_classes
    assert all(torch.equal(model.state_dict()[name], weights.tensors[name]) for name in report.taken)
    _, report = build_from_weights(config, CLASSES, weights)
    assert report.reinitialised == {}


class TestFreezing:
    """``--freeze`` with names that only some systems have."""

    def step(self, system: str, data: Path, *prefixes: str) -> tuple[dict[str, Any], set[str]]:
        """Return gradients by name, and the names of what moved in a step."""
        config = config_of(system)
        splits = small_runs.splits_of(data, config)
        stepper = small_runs.stepper(config, splits.categories.num_classes)
        freeze(stepper.model, prefixes)
        before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
        stepper([small_runs.batch_of(splits, config, small_runs.with_objects(splits)[:2])], 0)
        moved = {name for name, p in stepper.model.state_dict().items() if not torch.equal(p, before[name])}
        return {name: p.grad for name, p in stepper.model.named_parameters()}, moved

    @pytest.mark.parametrize(
        ("system", "prefix"),
        [
            ("relation", "detector.query_groups"),
            ("relation", "detector.query_groups.denoising.labels.weight"),
            ("relation-lora3", "detector.query_groups.hybrid."),
            ("relation-lora3", "detector.decoder.relation"),
            ("relation-lora3", "branches"),
            ("relation-lora3", "detector"),
            ("ms-detr", "branches.members.0"),
            ("hybrid", "detector.query_groups"),
        ],
    )
    def test_what_is_named_stays_and_the_rest_learns(self, system: str, prefix: str, shapes_tiny: Path) -> None:
        gradients, moved = self.step(system, shapes_tiny, prefix)
        still = {name for name in gradients if f"{name}.".startswith(prefix.rstrip(".") + ".")}
        assert still
        assert not still & moved
        assert all(gradients[name] is None for name in still)
        assert len(moved) > 0.8 * len(gradients.keys() - still)

    @pytest.mark.parametrize("system", ["ms-detr", "hybrid and dac"])
    @pytest.mark.parametrize("prefix", ["detector.query_groups", "detector.query_groups.denoising", "", "."])
    def test_groups_without_parameters_are_refused(self, system: str, prefix: str) -> None:
        with pytest.raises(ConfigError) as caught:
            freeze(config_of(system).build_model(3, load_weights=False), (prefix,))
        assert caught.value.exit_code == 2
        assert f"begins with '{prefix}'" in caught.value.message
