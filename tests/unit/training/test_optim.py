"""Parameter groups by rule, and the learning rate over time."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from lora_detr.errors import ConfigError
from lora_detr.recipe.optimisation import LrRule, OptimizerConfig, ScheduleConfig
from lora_detr.training.optim import build_optimizer, group_parameters, rate_factor, set_rates
from tests import small_runs

NAMES = ["detector.backbone.a", "detector.heads.boxes.0.weight", "detector.heads.boxes.0.bias", "branches.b1"]


def rules(*pairs: tuple[str, float], no_decay: tuple[str, ...] = ()) -> OptimizerConfig:
    listed = tuple(LrRule(pattern=pattern, scale=scale) for pattern, scale in pairs)
    return OptimizerConfig(lr=1e-3, weight_decay=0.05, lr_rules=listed, no_decay=no_decay)


def test_without_rules_there_is_one_group() -> None:
    (group,) = group_parameters(NAMES, rules())
    assert (group.scale, group.weight_decay, group.names) == (1.0, 0.05, tuple(NAMES))


def test_parameters_are_grouped_by_rate_and_decay() -> None:
    groups = group_parameters(NAMES, rules(("*backbone*", 0.1), ("*boxes*", 0.1), no_decay=("*.bias",)))
    assert [(group.scale, group.weight_decay, group.names) for group in groups] == [
        (0.1, 0.05, (NAMES[0], NAMES[1])),
        (0.1, 0.0, (NAMES[2],)),
        (1.0, 0.05, (NAMES[3],)),
    ]


def test_the_last_rule_that_matches_counts_alone() -> None:
    groups = group_parameters(NAMES, rules(("detector.*", 0.1), ("detector.heads.*", 0.5)))
    scales = {name: group.scale for group in groups for name in group.names}
    assert scales == {NAMES[0]: 0.1, NAMES[1]: 0.5, NAMES[2]: 0.5, NAMES[3]: 1.0}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (rules(("*", 0.5), ("detector.bakbone.*", 0.1)), "train.optimizer.lr_rules.1"),
        (rules(no_decay=("*.norm.*",)), "train.optimizer.no_decay.0"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(config: OptimizerConfig, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        group_parameters(NAMES, config)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{key}: ")
    assert NAMES[0] in caught.value.remedy


def test_a_rule_for_a_frozen_part_is_no_mistake() -> None:
    # The rules of a preset stay as they are when somebody freezes its backbone.
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "trained": nn.Linear(2, 2)})
    optimizer = build_optimizer(model, rules(("frozen.*", 0.1)))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="frozne"):
        build_optimizer(model, rules(("frozne.*", 0.1)))


def test_a_model_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), rules())


@pytest.mark.parametrize(
    ("scale", "batch", "expected"),
    [("none", 64, 1e-3), ("linear", 64, 4e-3), ("sqrt", 64, 2e-3), ("linear", 8, 5e-4), ("linear", 16, 1e-3)],
)
def test_the_rate_follows_the_global_batch_when_asked_to(
    scale: Literal["none", "linear", "sqrt"], batch: int, expected: float
) -> None:
    config = OptimizerConfig(lr=1e-3, reference_batch=16, scale_lr=scale)
    assert config.rate_for(batch) == pytest.approx(expected)


def test_every_parameter_of_the_detector_is_in_one_group_at_its_rate() -> None:
    config = small_runs.config()
    model = config.build_model(3, load_weights=False)
    optimizer = build_optimizer(model, config.train.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rate_of)
    for name, parameter in model.named_parameters():
        expected = 1e-4 if name.startswith("detector.backbone.") else 1e-3
        assert rate_of[id(parameter)] == pytest.approx(expected), name


def test_the_rate_is_constant_without_warm_up_and_drops() -> None:
    factor = rate_factor(ScheduleConfig(), 10, 100)
    assert {factor(step) for step in range(100)} == {1.0}


def test_warm_up_rises_linearly_and_reaches_the_full_rate_on_its_last_step() -> None:
    factor = rate_factor(ScheduleConfig(warmup_steps=4), 10, 100)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_warm_up_with_a_start_begins_there_and_rises_linearly() -> None:
    factor = rate_factor(ScheduleConfig(warmup_steps=4, warmup_start=0.2), 10, 100)
    assert [factor(step) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [(1, [1.0, 1.0, 1.0, 1.0]), (2, [0.1, 1.0, 1.0, 1.0]), (4, [0.1, 0.4, 0.7, 1.0]), (1000, [0.1, 0.19, 0.28, 0.37])],
)
def test_a_warm_up_with_a_start_ends_within_the_first_epoch(steps_per_epoch: int, expected: list[float]) -> None:
    factor = rate_factor(ScheduleConfig(warmup_steps=10, warmup_start=0.1), steps_per_epoch, 12 * steps_per_epoch)
    assert [factor(step) for step in range(4)] == pytest.approx(expected)


def test_a_start_without_warm_up_has_no_effect() -> None:
    factor = rate_factor(ScheduleConfig(warmup_steps=0, warmup_start=0.1), 10, 100)
    assert {factor(step) for step in range(100)} == {1.0}


def test_drops_by_epoch_and_by_share_of_the_run_multiply() -> None:
    factor = rate_factor(ScheduleConfig(drop_epochs=(1, 3), drop_fractions=(0.5,), factor=0.5), 10, 100)
    assert [factor(step) for step in (9, 10, 29, 30, 49, 50, 99)] == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_rates_are_set_from_the_base_rates_and_not_from_the_last_ones() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}], lr=1.0)
    for _ in range(2):
        set_rates(optimizer, [1.0, 0.1], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
