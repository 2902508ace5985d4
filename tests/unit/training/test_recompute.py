"""Layers that run again in backward change no bit of a step, and keep less."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_detr.branches import BranchedDetector
from lora_detr.data.synthetic.shapes import LABELLED
from lora_detr.errors import ConfigError
from lora_detr.models import TwoStageDetector
from lora_detr.recipe.run_config import RecomputedPart, RunConfig
from lora_detr.runs import run
from lora_detr.structures import Batch
from lora_detr.training.recompute import recompute
from lora_detr.training.seeding import rng_state, seed_everything
from lora_detr.training.step import Stepper
from tests import small_runs
from tests.small_runs import Lines, read_lines

CLASSES = len(LABELLED)
ALL: tuple[RecomputedPart, ...] = get_args(RecomputedPart)
HYBRID = ("model.hybrid={num_queries: 15}", "loss.hybrid.repeats=3")
DROPOUT = "model.dropout=0.1"
SWIN = "model.backbone={kind: timm, name: swin_tiny_patch4_window7_224, strides: [8, 16, 32], weights: none}"
RESNET = "model.backbone={kind: resnet, name: resnet18, weights: none}"
FROZEN = "model.backbone={kind: resnet, name: resnet18, weights: none, norm: frozen-batch, freeze_stem: true}"
SYSTEMS: dict[str, tuple[str, ...]] = {
    "deformable": ("deformable-tiny-lora3", DROPOUT),
    "bf16": ("deformable-tiny-lora3", DROPOUT, "train.precision=bf16"),
    "++": ("deformable-pp-tiny-lora3", DROPOUT),
    "ms-detr": ("ms-detr-tiny", DROPOUT),
    "relation": ("relation-tiny-lora3", DROPOUT),
    "ffn branches": ("deformable-tiny-ffn3", DROPOUT),
    "hybrid and dac": ("deformable-tiny", "model.dac=true", DROPOUT, *HYBRID),
    "swin with stochastic depth": ("deformable-tiny", DROPOUT, SWIN, "model.levels=4"),
    "resnet": ("deformable-tiny", DROPOUT, RESNET, "model.levels=4"),
    "resnet, stem frozen": ("deformable-tiny", DROPOUT, FROZEN, "model.levels=4"),
}


def settings_of(system: str, data: Path, *overrides: str) -> RunConfig:
    preset, *changes = SYSTEMS[system]
    return small_runs.reduced(preset, data, "train.optimizer.clip_norm=null", *changes, *overrides).loaded.config


def batches_of(data: Path, settings: RunConfig) -> list[Batch]:
    """Return two batches of two images with objects."""
    splits = small_runs.splits_of(data, settings)
    places = small_runs.with_objects(splits)
    return [small_runs.batch_of(splits, settings, places[i : i + 2]) for i in (0, 2)]


def detector_of(model: nn.Module) -> TwoStageDetector:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, BranchedDetector)
    assert isinstance(inner.detector, TwoStageDetector)
    return inner.detector


def stepped(
    settings: RunConfig, batches: Sequence[Batch], parts: Sequence[RecomputedPart]
) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of a step from the settings' seed."""
    stepper: Stepper = small_runs.stepper(settings, CLASSES)
    recompute(detector_of(stepper.model), parts)
    seed_everything(1)
    result = stepper(batches, 0)
    gradients = {name: p.grad for name, p in stepper.model.named_parameters() if p.grad is not None}
    return result.loss, gradients


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_is_the_same_bit_for_bit(system: str, shapes_tiny: Path) -> None:
    settings = settings_of(system, shapes_tiny)
    batches = batches_of(shapes_tiny, settings)
    loss, gradients = stepped(settings, batches, ())
    random = rng_state()
    found_loss, found = stepped(settings, batches, ALL)
    assert rng_state() == random
    assert found_loss == loss
    assert found.keys() == gradients.keys()
    assert [name for name in found if not torch.equal(found[name], gradients[name])] == []


def passes_and_bytes(
    settings: RunConfig, batch: Batch, parts: Sequence[RecomputedPart]
) -> tuple[dict[RecomputedPart, int], int]:
    """Return how often norms ran in each part, forward and backward together, and the bytes kept between the two."""
    model = settings.build_model(CLASSES, load_weights=False).train()
    recompute(model.detector, parts)
    passes = dict.fromkeys(ALL, 0)
    storages: dict[int, int] = {}

    def count(name: RecomputedPart) -> None:
        passes[name] += 1

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for name in ALL:
        for module in getattr(model.detector, name).modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.register_forward_hook(lambda *_, name=name: count(name))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.detector(batch.images, batch.targets)
    torch.stack(
        [layer.prediction.logits.sum() + layer.prediction.boxes.sum() for layer in output.layers]
    ).sum().backward()
    return passes, sum(storages.values())


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("system", ["deformable", "relation", "resnet"])
def test_each_part_alone_runs_again_and_keeps_less(part: RecomputedPart, system: str, shapes_tiny: Path) -> None:
    settings = settings_of(system, shapes_tiny)
    batch = batches_of(shapes_tiny, settings)[0]
    passes, kept = passes_and_bytes(settings, batch, ())
    found_passes, found_kept = passes_and_bytes(settings, batch, [part])
    assert found_kept < kept
    assert {name for name in ALL if found_passes[name] > passes[name]} == {part}
    assert all(found_passes[name] == passes[name] for name in ALL if name != part)


def test_a_module_calls_its_own_pass_after_a_deep_copy(shapes_tiny: Path) -> None:
    settings = settings_of("relation", shapes_tiny)
    model = settings.build_model(CLASSES, load_weights=False)
    recompute(model.detector, ALL)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    batch = batches_of(shapes_tiny, settings)[0]
    output = copied.detector.eval()(batch.images)
    assert output.layers[-1].prediction.logits.abs().max() == 0
    output.layers[-1].prediction.logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_of_parameters_and_evaluation_stay(shapes_tiny: Path) -> None:
    settings = settings_of("relation", shapes_tiny)
    model = settings.build_model(CLASSES, load_weights=False)
    batch = batches_of(shapes_tiny, settings)[0]
    detector = model.detector.eval()
    with torch.inference_mode():
        before = detector(batch.images).prediction.logits
    keys = list(model.state_dict())
    recompute(model.detector, (*ALL, *ALL))
    assert list(model.state_dict()) == keys
    with torch.inference_mode():
        assert torch.equal(detector(batch.images).prediction.logits, before)


def test_a_run_equals_one_without(small_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    changed = small_runs.train(
        shapes_tiny, tmp_path / "run", "train.recompute=[encoder, decoder, backbone]", "train.max_steps=3"
    )
    losses, expected = (
        [record["loss_hex"] for record in read_lines(path / "metrics.jsonl")] for path in (changed.directory, small_run)
    )
    assert losses == expected[:3]


def test_accumulated_passes_and_averaged_weights(shapes_tiny: Path, tmp_path: Path) -> None:
    changes = ("train.accumulate=2", "train.ema_decay=0.9", "train.max_steps=2", "train.optimizer.clip_norm=0.1")
    found = []
    for parts in ("[]", "[encoder, decoder, backbone]"):
        resolved = small_runs.reduced("relation-tiny", shapes_tiny, DROPOUT, *changes, f"train.recompute={parts}")
        directory = run.start(resolved, tmp_path / parts, None, dry_run=False, display=Lines()).directory
        lines = read_lines(directory / "metrics.jsonl")
        found.append(([line["loss_hex"] for line in lines], (directory / "eval" / "metrics.json").read_bytes()))
    assert found[0] == found[1]


class _InPlace(nn.Module):
    """A block that overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.activation(values) * 2
        return out


@pytest.fixture
def detector() -> TwoStageDetector:
    return small_runs.config().build_model(CLASSES, load_weights=False).detector


def assert_refused(error: ConfigError) -> None:
    assert error.exit_code == 2
    assert "leave backbone out" in error.remedy


def test_a_backbone_without_blocks_is_refused(detector: TwoStageDetector) -> None:
    detector.backbone.body = nn.Conv2d(3, 3, 1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no sequence of blocks") as caught:
        recompute(detector, ["backbone"])
    assert_refused(caught.value)


def test_a_block_that_overwrites_its_input_is_refused(detector: TwoStageDetector) -> None:
    detector.backbone.body = body = nn.Sequential(_InPlace(), _InPlace())  # type: ignore[attr-defined]
    recompute(detector, ["backbone"])
    values = torch.ones(2, requires_grad=True) * 1
    with pytest.raises(ConfigError, match="overwrites its input") as caught:
        body(values)
    assert_refused(caught.value)


def test_two_processes_need_no_search_for_unused_parameters(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks of DistributedDataParallel run in one process too."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    settings = settings_of("hybrid and dac", shapes_tiny)
    batches = batches_of(shapes_tiny, settings)
    loss, gradients = stepped(settings, batches, ())
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        stepper = small_runs.stepper(settings, CLASSES)
        recompute(detector_of(stepper.model), ALL)
        stepper.model = DistributedDataParallel(stepper.model)
        seed_everything(1)
        result = stepper(batches, 0)
        found = {name.removeprefix("module."): p.grad for name, p in stepper.model.named_parameters()}
        stepper(batches, 1)  # which fails if the first left a parameter out
    finally:
        torch.distributed.destroy_process_group()
    assert result.loss == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())
