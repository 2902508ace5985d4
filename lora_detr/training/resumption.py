"""Which settings of a run may differ when it is resumed: where it computes, what it writes, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_detr.config.dump import as_tree, diff_configs
from lora_detr.config.load import validate
from lora_detr.config.run import RunConfig
from lora_detr.config.tree import merge, nested
from lora_detr.errors import ConfigError
from lora_detr.training.optim import rate_factor
from lora_detr.training.trainer import Trainer

CHANGEABLE = {
    "train.epochs": "--epochs",
    "train.max_steps": "--max-steps",
    "train.device": "--device",
    "train.rank_timeout": "--set train.rank_timeout",
    "train.log_every": "--set train.log_every",
    "train.keep_last": "--set train.keep_last",
    "train.keep_every": "--keep-every",
    "train.tensorboard": "--tensorboard",
    "data.path": "--data",
    "data.workers": "--workers",
}
"""Key path -> how it is given. The data may move, but its content is compared with what the run started on."""


def changed(stored: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Return the configuration to go on with.

    Args:
        stored: of the run.
        changes: key path -> value; a value equal to the run's own is no change.

    Raises:
        ConfigError: C07, a change that would make it another run, all of them listed; or an invalid value.
    """
    given = dict(changes)
    if "train.epochs" in given:
        given.setdefault("train.max_steps", None)
    if "data.path" in given:
        given["data.path"] = str(Path(str(given["data.path"])).resolve())
    tree = as_tree(stored)
    for key, value in given.items():
        # Through JSON, so that paths and tuples become what a file would hold.
        merged = merge(tree, nested(key, json.loads(json.dumps(value, default=str)), tree))
        assert isinstance(merged, dict)
        tree = merged
    config = validate(RunConfig, tree, dict.fromkeys(given, "this command"))
    refused = [(key, old, new) for key, old, new in diff_configs(stored, config) if key not in CHANGEABLE]
    if refused:
        listed = "; ".join(f"{key}: the run has {old}, this command {new}" for key, old, new in refused)
        raise ConfigError(
            f"--resume continues a run with its own settings, but {listed}",
            f"leave them out, or start a new run (what may change: {', '.join(CHANGEABLE.values())})",
            code="C07",
        )
    return config


def schedule_notes(trainer: Trainer, stored: RunConfig) -> list[str]:
    """Return what a longer run does to the learning rate: drops given as shares of all steps move with their number.

    Args:
        trainer: restored, with the new settings.
        stored: the run had these settings until now.
    """
    total = trainer.steps_per_epoch * stored.train.epochs
    if stored.train.max_steps is not None:
        total = min(total, stored.train.max_steps)
    before = rate_factor(stored.train.schedule, trainer.steps_per_epoch, total)(trainer.step)
    now = trainer.rate_factor(trainer.step)
    if now == before:
        return []
    return [
        f"note: `train.schedule.drop_fractions` are shares of all steps, now {trainer.total_steps} instead of {total}; "
        f"the factor on the learning rate goes from {before:g} to {now:g}"
    ]
