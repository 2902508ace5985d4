"""Parameter groups by rule, AdamW, and the step schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from lora_detr.errors import ConfigError
from lora_detr.recipe.optimisation import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class GroupSpec:
    """One parameter group: its scale, decay and the names in it."""

    scale: float
    weight_decay: float
    names: tuple[str, ...]


def group_parameters(names: Iterable[str], config: OptimizerConfig, frozen: Iterable[str] = ()) -> list[GroupSpec]:
    """Sort parameter names into groups of equal learning rate and decay, in order of first appearance.

    Args:
        names: of all parameters that are trained.
        config: the rules.
        frozen: names of the other parameters; a rule that matches only these is no mistake.

    Raises:
        ConfigError: a rule matches no parameter at all.
    """
    names = list(names)
    known = [*names, *frozen]
    for field, patterns in (
        ("lr_rules", [rule.pattern for rule in config.lr_rules]),
        ("no_decay", list(config.no_decay)),
    ):
        for index, pattern in enumerate(patterns):
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"train.optimizer.{field}.{index}: '{pattern}' matches no parameter",
                    f"parameter names look like {known[0] if known else '(none)'}; '*' stands for anything",
                )
    groups: dict[tuple[float, float], list[str]] = {}
    for name in names:
        scale = 1.0
        for rule in config.lr_rules:
            if fnmatchcase(name, rule.pattern):
                scale = rule.scale
        decay = 0.0 if any(fnmatchcase(name, pattern) for pattern in config.no_decay) else config.weight_decay
        groups.setdefault((scale, decay), []).append(name)
    return [GroupSpec(scale, decay, tuple(members)) for (scale, decay), members in groups.items()]


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float | None = None) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of ``model``, grouped by rule.

    Args:
        model: what is trained.
        config: rates, decay, rules.
        lr: learning rate, if the global batch changes the one of ``config``.

    Raises:
        ConfigError: a rule matches no parameter, or no parameter is trained.
    """
    lr = config.lr if lr is None else lr
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not trained:
        raise ConfigError("every parameter is frozen: there is nothing to train", "freeze less")
    groups = [
        {
            "params": [trained[name] for name in group.names],
            "lr": lr * group.scale,
            "weight_decay": group.weight_decay,
        }
        for group in group_parameters(trained, config, frozen)
    ]
    # The fused kernel is the quick one on every device, the CPU included.
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True)


def rate_factor(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """Return the factor on every learning rate as a function of the step, 0 first.

    Args:
        config: the schedule.
        steps_per_epoch: optimiser steps of an epoch.
        total_steps: of the whole run; drops given as fractions refer to it.
    """
    drops = sorted(
        [epoch * steps_per_epoch for epoch in config.drop_epochs]
        + [int(fraction * total_steps) for fraction in config.drop_fractions]
    )

    warm = max(config.warmup_steps, int(config.warmup_fraction * total_steps))

    def factor(step: int) -> float:
        return _warm_up(config, warm, steps_per_epoch, step) * config.factor ** sum(step >= drop for drop in drops)

    return factor


def _warm_up(config: ScheduleConfig, warm: int, steps_per_epoch: int, step: int) -> float:
    if config.warmup_start is None:
        return min(1.0, (step + 1) / warm) if warm else 1.0
    # The first step has the start itself, so the rises are one fewer than the steps: an epoch of one step has none.
    rises = min(warm, steps_per_epoch - 1)
    return config.warmup_start + (1 - config.warmup_start) * step / rises if step < rises else 1.0


def set_rates(optimizer: torch.optim.Optimizer, base: Sequence[float], factor: float) -> None:
    """Set the rate of each group to its base rate times ``factor``."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor
