"""How long a run is if nobody says so: its preset's epochs, but enough steps to learn from few images."""

from __future__ import annotations

from lora_detr.config.load import Loaded
from lora_detr.config.presets import configs_root, list_presets
from lora_detr.errors import counted
from lora_detr.recipe.run_config import RunConfig

MIN_STEPS = 1000
"""Steps below which epochs are added. Fine-tuning from ImageNet weights finds little in fewer."""


def shipped_origins() -> set[str]:
    """Return the origins of values that come with this program, and that no user has chosen."""
    names = {name for preset in list_presets() for name in (preset.name, preset.path.stem)}
    names |= {path.stem for path in (configs_root() / "huggingface").glob("*.yaml")}
    return {"schema", *(f"preset {name}" for name in names)}


def has_default_length(loaded: Loaded[RunConfig]) -> bool:
    """Return whether nobody has chosen how long the run is."""
    return loaded.config.train.max_steps is None and loaded.origin["train.epochs"] in shipped_origins()


def lengthened(loaded: Loaded[RunConfig], images: int, processes: int) -> tuple[Loaded[RunConfig], str]:
    """Return settings of at least ``MIN_STEPS`` steps, and a note on what was changed; empty if nothing was.

    Drops of the learning rate stay at the same share of the run, and there are as many evaluations as before.

    Args:
        loaded: the settings.
        images: of the training split, at least 1.
        processes: that train together.
    """
    train = loaded.config.train
    batch = train.batch_size * train.accumulate * processes
    per_epoch = max(1, images // batch)
    if not has_default_length(loaded) or per_epoch * train.epochs >= MIN_STEPS:
        return loaded, ""
    epochs = -(-MIN_STEPS // per_epoch)
    schedule, every = train.schedule, loaded.config.evaluation.every
    shares = [epoch / train.epochs for epoch in schedule.drop_epochs if epoch < train.epochs]
    schedule = schedule.model_copy(
        update={"drop_epochs": (), "drop_fractions": tuple(sorted([*schedule.drop_fractions, *shares]))}
    )
    often = max(every, round(every * epochs / train.epochs))
    config = loaded.config.model_copy(
        update={
            "train": train.model_copy(update={"epochs": epochs, "schedule": schedule}),
            "evaluation": loaded.config.evaluation.model_copy(update={"every": often}),
        }
    )
    few = f"for {counted(images, 'image')}"
    changed = ("train.epochs", "train.schedule.drop_epochs", "train.schedule.drop_fractions", "evaluation.every")
    note = (
        f"{counted(images, 'image')} for training: {epochs} epochs ({epochs * per_epoch:,} steps) instead of "
        f"{train.epochs}, evaluated every {often}; --epochs chooses others"
    )
    return Loaded(config, {**loaded.origin, **dict.fromkeys(changed, few)}, loaded.raw), note


def with_length_of(loaded: Loaded[RunConfig], stored: RunConfig) -> RunConfig:
    """Return the settings for a run that was begun with ``stored``, which keeps its length unless a user chose one."""
    config = loaded.config
    if not has_default_length(loaded):
        return config
    length = {"epochs": stored.train.epochs, "schedule": stored.train.schedule}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=length),
            "evaluation": config.evaluation.model_copy(update={"every": stored.evaluation.every}),
        }
    )
