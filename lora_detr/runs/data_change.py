"""Whether a resumed run sees the data that it started on, and what may differ if the user insists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.fingerprint import CATEGORIES, IMAGES, differing_parts, ids_and_sizes
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.json_value import JSON
from lora_detr.recipe.loaders import Splits
from lora_detr.runs.resumption import DATA, allows


@dataclass(frozen=True)
class DataChange:
    """What differs between the data of a run and the data that it is resumed on.

    Attributes:
        differing: a text for each split that differs, with the parts that do; empty where nothing does.
        only_ids_and_sizes: whether an older version has recorded no more than those, and the categories.
    """

    differing: tuple[str, ...]
    only_ids_and_sizes: bool

    def __bool__(self) -> bool:
        return bool(self.differing)

    def __str__(self) -> str:
        return "; ".join(self.differing)

    def notes(self) -> list[str]:
        """Return what a user should know where nothing differs, a line each."""
        if not self.only_ids_and_sizes:
            return []
        return [
            "note: an older version saved this run: only ids and sizes of its images, and its categories, could be "
            "compared with the data, not boxes, crowd flags or image files"
        ]


def compare_data(state: TrainingState, splits: Splits, found: Mapping[str, JSON]) -> DataChange:
    """Compare data with what a checkpoint has recorded.

    Args:
        state: of the checkpoint.
        splits: the data.
        found: its fingerprints, which may know more of the image files than ``splits`` of this process.
    """
    recorded = state.data if isinstance(state.data, dict) else {}
    categories = _renamed(state.categories, splits.categories)
    differing = []
    for name, what, split in (("train", "training", splits.train), ("val", "validation", splits.val)):
        old, new = recorded.get(name), found.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts = differing_parts(old, new)
        elif isinstance(old, str) and split is not None:
            parts = [IMAGES] if old != ids_and_sizes(split.records) else []
            parts += [CATEGORIES] if categories else []
        elif old is None and new is None:
            parts = []
        else:
            differing.append(f"{what} split: {'absent' if new is None else 'not recorded by the run'}")
            continue
        if parts:
            listed = [f"{part} ({categories})" if part == CATEGORIES and categories else part for part in parts]
            differing.append(f"{what} split: {', '.join(listed)}")
    return DataChange(tuple(differing), any(isinstance(old, str) for old in recorded.values()))


def refuse_other_data(
    run: Path, data: Path, change: DataChange, state: TrainingState, splits: Splits, overrides: Sequence[str]
) -> None:
    """Refuse other data than the run started on, unless the user insists and the labels mean the same.

    Raises:
        ConfigError: C08.
    """
    if not change:
        return
    relabelled = _renamed(state.categories, splits.categories)
    new_run = f"start a new run with --weights {run}, which keeps all weights that fit"
    if not allows(overrides, DATA):
        raise ConfigError(
            f"--resume {run}: {data} is not what the run started on; what differs: {change}",
            f"restore the data, or {new_run if relabelled else f'insist with --override {DATA}'}",
            code="C08",
        )
    if relabelled:
        raise ConfigError(
            f"--resume {run}: {data} has other categories than the run, whose labels would change meaning "
            f"({relabelled})",
            new_run,
            code="C08",
        )


def _renamed(stored: JSON, found: CategoryMap) -> str:
    """Return how the categories of a run differ from those of the data; an empty text if they do not."""
    if stored == found.to_json():
        return ""
    try:
        old = CategoryMap.from_json(stored)
    except CheckpointError:
        return "not recorded"
    if old.num_classes != found.num_classes:
        return f"{old.num_classes} until now, {found.num_classes} here"
    pairs = zip(zip(old.ids, old.names, strict=True), zip(found.ids, found.names, strict=True), strict=True)
    label, (was, now) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"label {label} was {was[1]!r} (id {was[0]}), is {now[1]!r} (id {now[0]})"
