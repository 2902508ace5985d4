"""Presets have the settings of the official scripts: learning rates, sizes, loss weights, augmentation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lora_detr.config.optimisation import ScheduleConfig
from lora_detr.config.run import RunConfig
from lora_detr.data.transforms import EvalTransformConfig, TrainTransformConfig
from lora_detr.models.backbones import ResNetConfig
from lora_detr.structures import (
    BranchOutput,
    DecoderLayerOutput,
    DetectorOutput,
    EncoderOutput,
    PaddedTargets,
    Prediction,
)
from lora_detr.training.optim import rate_factor
from tests.golden import store
from tests.golden.systems import official_name, run_config, system_of_config, with_preset

NAME = "schedule"
FAMILY = "deformable_family"
EPOCHS_AND_DROP = re.compile(r"(\d+)ep_drop(\d+)$")
# How the stored text begins for each of our kinds of classification loss.
CLASSIFICATION = {"quality-aware": "quality", "focal": "focal"}


def _curves() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [key for key in store.load_json(NAME)[FAMILY] if EPOCHS_AND_DROP.search(key)]


def _preset(name: str) -> tuple[dict[str, Any], RunConfig]:
    entry = store.load_json(NAME)["configs"][name]
    system = system_of_config(entry)
    assert system is not None
    config = run_config(*system)
    assert config is not None
    return entry, config


def test_values_exist() -> None:
    store.require(_curves(), "learning rates")
    for group in ("configs", "loss_weights"):
        assert len(store.require(with_preset(group), group)) >= 2, "a baseline and one with branches are expected"


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


@pytest.mark.parametrize("name", with_preset("configs"))
def test_settings(name: str) -> None:
    entry, config = _preset(name)
    assert config.model.num_queries == entry["num_queries"]
    assert config.model.dropout == entry["dropout"]
    assert config.model.mixed_selection == entry["mixed_selection"]
    assert config.model.look_forward_twice == entry["look_forward_twice"]
    assert config.train.epochs == entry["epochs"]
    assert config.train.schedule.drop_epochs == (entry["lr_drop"],)
    assert config.train.schedule.warmup_steps == 0
    assert config.train.optimizer.clip_norm == entry["clip_max_norm"]
    assert config.train.seed == entry["seed"]
    assert config.train.batch_size == entry["batch_size_per_process"]
    assert config.train.optimizer.reference_batch == entry["total_batch"]
    assert config.evaluation.max_detections == entry["topk_eval"]
    assert [branch.matcher.k for branch in config.branches] == entry["k_per_branch"]
    assert config.loss.primary.classification == CLASSIFICATION[entry["classification_loss_main"]]
    if config.branches:
        assert config.loss.branch.classification == CLASSIFICATION[entry["classification_loss_aux"]]
        assert config.loss.branch.merge_one_to_one == entry["use_indices_merge"]


@pytest.mark.parametrize("name", with_preset("loss_weights"))
def test_loss_weights(name: str) -> None:
    _, config = _preset(name)
    layers, queries, classes, tokens = config.model.decoder_layers, 8, 3, 12

    def draw(*leading: int) -> Prediction:
        return Prediction(torch.randn(*leading, classes), torch.rand(*leading, 4))

    unread = torch.empty(0)
    published = tuple(
        DecoderLayerOutput(unread, unread, unread, unread, unread, draw(1, queries)) for _ in range(layers)
    )
    output = DetectorOutput(published, EncoderOutput(draw(1, tokens), torch.rand(1, tokens, 4)), unread, unread)
    count = len(config.branches)
    branches = BranchOutput(tuple(draw(count, 1, queries) for _ in range(layers)), ()) if count else None
    targets = PaddedTargets(torch.rand(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2).bool(), (2,))
    report = config.build_criterion()(output, branches, targets, 2.0)
    weights = {official_name(key, layers): weight for key, weight in zip(report.keys, report.weights, strict=True)}
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
    for name in store.require(with_preset("configs"), "configs"):
        _, config = _preset(name)
        assert config.data.train == TrainTransformConfig()
        assert config.data.evaluation == EvalTransformConfig()
        assert config.data.size_divisor == 1
        assert config.data.num_classes == "coco91"
