"""Which settings of a run may differ when it is resumed: where it computes, what it writes, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lora_detr.config.dump import as_tree, diff_configs
from lora_detr.config.load import validate
from lora_detr.config.tree import is_within, merge, nested, paths
from lora_detr.data.coco.source import AUTO
from lora_detr.data.synthetic.sets import resolve_generated
from lora_detr.errors import ConfigError, nearest
from lora_detr.json_value import JSON
from lora_detr.recipe.run_config import RunConfig
from lora_detr.training.optim import rate_factor
from lora_detr.training.trainer import Trainer

CHANGEABLE = {
    "train.epochs": "--epochs",
    "train.max_steps": "--max-steps",
    "train.device": "--device",
    "train.rank_timeout": "--set train.rank_timeout",
    "train.log_every": "--set train.log_every",
    "train.diagnostics": "--diagnostics",
    "train.on_full_log": "--set train.on_full_log",
    "train.recompute": "--recompute",
    "train.save_every": "--save-every",
    "train.keep_last": "--set train.keep_last",
    "train.keep_every": "--keep-every",
    "train.tensorboard": "--tensorboard",
    "data.path": "--data",
    "data.format": "--data-format",
    "data.workers": "--workers",
    "data.verify": "--verify",
    "data.allow_outside": "--allow-outside",
}
"""Key path -> how it is given. The data may move, but its content is compared with what the run started on."""


PROCESSES, DATA = "processes", "data"
"""What may be overridden by name besides settings: the number of processes, and the content of the data."""


def allows(overrides: Sequence[str], name: str) -> bool:
    """Return whether the user named a difference, or a section that it is in, as one to go on with."""
    return any(is_within(name, given) for given in overrides)


def changed(stored: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Return the configuration that options make of a run's own.

    Args:
        stored: of the run.
        changes: key path -> value; a value equal to the run's own is no change.

    Raises:
        ConfigError: an invalid key or value.
    """
    given = dict(changes)
    if "train.epochs" in given:
        given.setdefault("train.max_steps", None)
    if "data.path" in given:
        given.setdefault("data.format", AUTO)
        given["data.path"] = str(resolve_generated(Path(str(given["data.path"]))).resolve())
    tree = as_tree(stored)
    for key, value in given.items():
        # Through JSON, so that paths and tuples become what a file would hold.
        merged = merge(tree, nested(key, json.loads(json.dumps(value, default=str)), tree))
        assert isinstance(merged, dict)
        tree = merged
    return validate(RunConfig, tree, dict.fromkeys(given, "this command"))


def allowed_changes(stored: RunConfig, config: RunConfig, overrides: Sequence[str]) -> list[dict[str, JSON]]:
    """Return what a run will do differently from now on, for its record.

    Args:
        stored: the run had it until now.
        config: to go on with.
        overrides: what may differ besides ``CHANGEABLE``: key paths of settings or sections, ``processes``, ``data``.

    Returns:
        Key path, old and new value of each difference, and whether it needed an override.

    Raises:
        ConfigError: C07, a change that would make it another run, all of them listed; or an unknown override.
    """
    known = {PROCESSES, DATA, *paths(as_tree(stored)), *paths(as_tree(config))}
    found = diff_configs(stored, config)
    for name in overrides:
        if name not in known and not any(is_within(key, name) for key, _, _ in found):
            raise ConfigError(
                f"--override {name}: unknown{nearest(name, known)}",
                f"give the key path of a setting, {PROCESSES}, or {DATA}",
            )
    refused = [item for item in found if item[0] not in CHANGEABLE and not allows(overrides, item[0])]
    if refused:
        listed = "; ".join(f"{key}: the run has {old}, this command {new}" for key, old, new in refused)
        names = " ".join(f"--override {key}" for key, _, _ in refused)
        raise ConfigError(
            f"--resume continues a run with its own settings, but {listed}",
            f"leave them out, start a new run, or insist with {names} "
            f"(what may change without: {', '.join(CHANGEABLE.values())})",
            code="C07",
        )
    return [{"key": key, "was": old, "now": new, "override": key not in CHANGEABLE} for key, old, new in found]


def schedule_notes(trainer: Trainer, stored: RunConfig) -> list[str]:
    """Return what a longer run does to the learning rate: drops given as shares of all steps move with their number.

    Args:
        trainer: restored, with the new settings.
        stored: the run had these settings until now.
    """
    plan = trainer.plan
    before = replace(plan, epochs=stored.train.epochs, max_steps=stored.train.max_steps)
    old, new = (
        rate_factor(trainer.config.train.schedule, plan.steps_per_epoch, length)(plan.done(trainer.step))
        for length in (before.length, plan.length)
    )
    if old == new:
        return []
    return [
        f"note: `train.schedule.drop_fractions` are shares of all steps, now {plan.total_steps} instead of "
        f"{before.total_steps}; the factor on the learning rate goes from {old:g} to {new:g}"
    ]
