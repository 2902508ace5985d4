"""Presets have the settings of the official scripts: learning rates, sizes, loss weights, augmentation."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch

from lora_detr.data.transforms import EvalTransformConfig, TrainTransformConfig
from lora_detr.losses.normaliser import Normaliser
from lora_detr.models import RelationDetrConfig
from lora_detr.models.backbones import ResNetConfig
from lora_detr.recipe.optimisation import ScheduleConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import (
    Assignment,
    BranchOutput,
    DecoderLayerOutput,
    DetectorOutput,
    EncoderOutput,
    PaddedTargets,
    Prediction,
    QueryGroupOutput,
)
from lora_detr.training.optim import rate_factor
from tests.golden import store
from tests.golden.systems import official_name, official_relation_name, run_config, script_config, scripts

NAME = "schedule"
FAMILY = "deformable_family"
EPOCHS_AND_DROP = re.compile(r"(\d+)ep_drop(\d+)$")
ITERATIONS = re.compile(r"(\d+)_iterations_per_epoch$")
# How the stored text begins for each of our kinds of classification loss.
CLASSIFICATION = {"quality-aware": "quality", "focal": "focal"}


def _curves() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [key for key in store.load_json(NAME)[FAMILY] if EPOCHS_AND_DROP.search(key)]


def test_values_exist() -> None:
    store.require(_curves(), "learning rates")
    for group in ("configs", "loss_weights"):
        found = [script_config(name) for name in store.require(scripts(group), group)]
        kinds = {(config.model.kind, bool(config.branches)) for _, config in found}
        assert kinds >= {("deformable", False), ("deformable", True), ("relation", False), ("relation", True)}


@pytest.mark.parametrize("key", _curves())
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_learning_rates(key: str, steps_per_epoch: int) -> None:
    stored = store.load_json(NAME)[FAMILY]
    match = EPOCHS_AND_DROP.search(key)
    assert match is not None
    epochs, drop = int(match.group(1)), int(match.group(2))
    assert stored["warmup"] is None
    schedule = ScheduleConfig(drop_epochs=tuple(range(drop, epochs, drop)))
    factor = rate_factor(schedule, steps_per_epoch, epochs * steps_per_epoch)
    config = run_config(False, 0)
    assert config is not None
    scales = {rule.scale for rule in config.train.optimizer.lr_rules}
    assert scales == {0.1}
    base = [config.train.optimizer.lr * (1.0 if name == "default" else 0.1) for name in stored["order_of_groups"]]
    assert len(stored[key]) == epochs
    for epoch, rates in enumerate(stored[key]):
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert [rate * factor(step) for rate in base] == pytest.approx(rates, rel=1e-9)


def _relation_examples() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [key for key in store.load_json(NAME)["relation_family"] if ITERATIONS.search(key)]


def test_values_of_the_relation_family_exist() -> None:
    assert len(store.require(_relation_examples(), "warm-up")) >= 2, "a short and a long epoch are expected"


@pytest.mark.parametrize("key", _relation_examples())
def test_learning_rates_of_the_relation_family(key: str) -> None:
    stored = store.load_json(NAME)["relation_family"]
    match = ITERATIONS.search(key)
    assert match is not None
    steps = int(match.group(1))
    base = [stored["base_lrs"]["other"], stored["base_lrs"]["backbone"]]
    factor = rate_factor(ScheduleConfig(warmup_steps=1000, warmup_start=0.001, drop_epochs=(10,)), steps, 12 * steps)

    expected: dict[int, list[float]] = {}
    for name, values in stored[key].items():
        if name == "per_epoch":
            for epoch, ends in enumerate(values):
                expected[epoch * steps] = ends["first_iter"]
                expected[(epoch + 1) * steps - 1] = ends["last_iter"]
        else:  # the first epoch, all steps of it or some by number
            listed = values.items() if isinstance(values, dict) else enumerate(values)
            expected |= {int(step): rates for step, rates in listed}
    assert len(expected) >= 9
    for step, rates in expected.items():
        assert [rate * factor(step) for rate in base] == pytest.approx(rates, rel=1e-9), step


@pytest.mark.parametrize("name", scripts("configs"))
def test_settings(name: str) -> None:
    entry, config = script_config(name)
    assert config.model.num_queries == entry["num_queries"]
    assert config.model.dropout == entry["dropout"]
    assert config.train.epochs == entry["epochs"]
    assert config.train.optimizer.clip_norm == entry["clip_max_norm"]
    assert config.train.batch_size == entry["batch_size_per_process"]
    assert [branch.matcher.k for branch in config.branches] == entry["k_per_branch"]
    if isinstance(config.model, RelationDetrConfig):
        _check_relation(entry, config, config.model)
        return
    assert not isinstance(config.model, RelationDetrConfig)
    assert config.model.mixed_selection == entry["mixed_selection"]
    assert config.model.look_forward_twice == entry["look_forward_twice"]
    assert config.train.seed == entry["seed"]
    assert config.train.optimizer.reference_batch == entry["total_batch"]
    assert config.train.schedule.drop_epochs == (entry["lr_drop"],)
    assert config.train.schedule.warmup_steps == 0
    assert config.evaluation.max_detections == entry["topk_eval"]
    assert config.loss.primary.classification == CLASSIFICATION[entry["classification_loss_main"]]
    if config.branches:
        assert config.loss.branch.classification == CLASSIFICATION[entry["classification_loss_aux"]]
        assert config.loss.branch.merge_one_to_one == entry["use_indices_merge"]


def _check_relation(entry: dict[str, Any], config: RunConfig, model: RelationDetrConfig) -> None:
    assert model.hybrid is not None
    assert model.denoising is not None
    assert model.hybrid.num_queries == entry["hybrid_queries"]
    assert config.loss.hybrid.repeats == entry["hybrid_assign"]
    assert model.denoising.num_queries == entry["denoising_nums"]
    assert model.denoising.label_noise == entry["label_noise_prob"]
    assert model.denoising.label_noise / 2 == entry["label_flip_probability_effective"]
    assert model.denoising.box_noise == entry["box_noise_scale"]
    assert config.evaluation.max_detections == entry["select_box_nums_for_evaluation"]
    assert (config.train.schedule.warmup_steps, config.train.schedule.warmup_start) == (1000, 0.001)
    assert config.train.schedule.drop_epochs == (10,)
    loss = config.loss
    losses = (loss.primary, loss.encoder, loss.denoising, loss.hybrid.encoder)
    assert {one.classification for one in losses} == {"iou-aware"}
    if config.branches:
        assert (loss.branch.classification, loss.branch.quality) == ("iou-aware", "iou")
        assert loss.branch.merge_one_to_one == entry["indices_merge_always_on"]


@pytest.mark.parametrize("name", scripts("loss_weights"))
def test_loss_weights(name: str) -> None:
    _, config = script_config(name)
    layers, queries, classes, tokens = config.model.decoder_layers, 8, 3, 12

    def draw(*leading: int) -> Prediction:
        return Prediction(torch.randn(*leading, classes), torch.rand(*leading, 4))

    def proposals() -> EncoderOutput:
        return EncoderOutput(draw(1, tokens), torch.rand(1, tokens, 4), torch.arange(queries)[None])

    unread = torch.empty(0)
    published = tuple(
        DecoderLayerOutput(unread, unread, unread, unread, unread, draw(1, queries)) for _ in range(layers)
    )
    groups: tuple[QueryGroupOutput, ...] = ()
    if isinstance(config.model, RelationDetrConfig):
        pairs = Assignment(torch.arange(2).view(1, 1, 2, 1), torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1).bool())
        found = tuple(draw(1, queries) for _ in range(layers))
        groups = (QueryGroupOutput("denoising", found, pairs=pairs), QueryGroupOutput("hybrid", found, proposals()))
    output = DetectorOutput(published, proposals(), unread, unread, groups)
    count = len(config.branches)
    branches = BranchOutput(tuple(draw(count, 1, queries) for _ in range(layers)), ()) if count else None
    targets = PaddedTargets(torch.rand(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2).bool(), (2,))
    report = config.build_criterion()(output, branches, targets, Normaliser(2.0))
    name_of = official_relation_name if isinstance(config.model, RelationDetrConfig) else official_name
    weights = {name_of(key, layers): weight for key, weight in zip(report.keys, report.weights, strict=True)}
    assert weights == pytest.approx(store.load_json(NAME)["loss_weights"][name])


def test_augmentation() -> None:
    stored = store.load_json(NAME)["augmentation"][FAMILY]
    train, evaluation = TrainTransformConfig(), EvalTransformConfig()
    assert list(train.scales) == stored["scales"]
    assert train.max_size == stored["max_size"]
    assert list(train.crop_scales) == stored["intermediate_scales"]
    assert list(train.crop_range) == stored["crop_range"]
    assert train.flip_probability == stored["flip_p"]
    assert train.crop_probability == 1 - stored["select_p"]
    assert (evaluation.size, evaluation.max_size) == (stored["val_scale"], stored["val_max"])
    assert not train.square
    assert not evaluation.square
    mean, std = ResNetConfig().input_statistics
    assert (list(mean), list(std)) == (stored["mean"], stored["std"])


def test_presets_keep_the_augmentation() -> None:
    for name in store.require(scripts("configs"), "configs"):
        _, config = script_config(name)
        relation = isinstance(config.model, RelationDetrConfig)
        rule: Literal["relation", "deformable"] = "relation" if relation else "deformable"
        assert config.data.train == TrainTransformConfig(rule=rule, min_box=1.0 if relation else 0.0)
        assert config.data.evaluation == EvalTransformConfig(rule=rule)
        assert config.data.size_divisor == (32 if relation else 1)
        assert config.data.num_classes == "coco91"


def test_augmentation_of_the_relation_family() -> None:
    """Sizes and probabilities are those of the other family; only rounding, padding and small boxes differ."""
    one, other = (store.load_json(NAME)["augmentation"][family] for family in (FAMILY, "relation_family"))
    for key in ("scales", "max_size", "intermediate_scales", "crop_range", "flip_p", "select_p", "mean", "std"):
        assert one[key] == other[key]
    evaluation = EvalTransformConfig(rule="relation")
    assert (evaluation.size, evaluation.max_size) == (other["eval_min_size"], other["eval_max_size"])
