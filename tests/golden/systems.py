"""What the reference values say, in our own terms: which entries we can run, targets, criteria and names of losses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.config.run import RunConfig
from lora_detr.losses.config import BranchLossConfig, CriterionConfig, PrimaryLossConfig, TermWeights
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.report import LossKey, LossReport
from lora_detr.matchers import TopK
from lora_detr.structures import PaddedTargets, Target
from tests.golden import store

OFFICIAL_KINDS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


def one_to_one_family(entry: dict[str, Any]) -> bool:
    """Say whether a losses case is of the Deformable family, with LoRA branches or none."""
    config: str = entry["config"]
    return "hybrid_queries" not in entry and "relation" not in config and config.startswith(("deformable", "lora"))


def padded(images: Sequence[tuple[Tensor, Tensor]]) -> PaddedTargets:
    """Return (labels, boxes) of each image as one rectangular set."""
    return PaddedTargets.from_targets(
        [Target(boxes, labels, image_id, (1, 1)) for image_id, (labels, boxes) in enumerate(images)]
    )


def criterion(
    num_layers: int, ks: Sequence[int], *, lora: bool, merge: bool, threshold: float = 0.4, class_weight: float = 0.3
) -> Criterion:
    """Return our criterion with the settings of an official configuration (golden README, 1.6)."""
    config = CriterionConfig(
        primary=PrimaryLossConfig(
            classification="quality" if lora else "focal",
            weights=TermWeights(classification=1.0 if lora else 2.0),
        ),
        branch=BranchLossConfig(merge_one_to_one=merge),
    )
    names = [f"branch{i}" for i in range(len(ks))]
    return Criterion(num_layers, config, names, [TopK([k], [threshold], [class_weight]) for k in ks])


def official_name(key: LossKey, num_layers: int) -> str:
    """Return the official name of one of our loss terms."""
    name = OFFICIAL_KINDS[key.kind]
    if key.source == "encoder":
        return f"{name}_enc"
    if key.layer != num_layers - 1:
        name += f"_{key.layer}"
    return name if key.source == "primary" else f"{name}_o2m_lora_{key.source.removeprefix('branch')}"


def check_terms(
    report: LossReport, expected: dict[str, Any], num_layers: int, *, relative: float, absolute: float
) -> None:
    """Compare every term's value and weight; terms without weight are for logging only and have no counterpart."""
    weighted = {name: loss for name, loss in expected.items() if loss["weight"] is not None}
    ours = {official_name(term.key, num_layers): term for term in report.terms()}
    assert len(ours) == len(report.keys)
    assert ours.keys() == weighted.keys()
    for name, loss in weighted.items():
        assert abs(ours[name].value - loss["value"]) <= relative * abs(loss["value"]) + absolute, name
        assert abs(ours[name].weight - loss["weight"]) < 1e-9, name


def base_name(plus_plus: bool) -> str:
    """Return the name of the baseline preset."""
    return "deformable-pp" if plus_plus else "deformable"


@functools.cache
def run_config(plus_plus: bool, num_branches: int, rank: int | None = None) -> RunConfig | None:
    """Return the preset of a configuration, with as many branches of the preset's kind as asked for.

    A number of branches without preset of its own takes the one with three, as ``--aux`` does. None when there is no
    preset of the system yet.
    """
    stems = {preset.name.rpartition("/")[2] for preset in list_presets()}
    base = base_name(plus_plus)
    names = [base] if num_branches == 0 else [f"{base}-lora{num_branches}", f"{base}-lora3"]
    found = next((name for name in names if name in stems), None)
    if found is None:
        return None
    config = load_config(RunConfig, preset=found).config
    if num_branches and len(config.branches) != num_branches:
        config = config.model_copy(update={"branches": (config.branches[0],) * num_branches})
    if rank is not None:
        branches = tuple(branch.model_copy(update={"rank": rank}) for branch in config.branches)
        config = config.model_copy(update={"branches": branches})
    return config


def system_of_config(entry: dict[str, Any]) -> tuple[bool, int] | None:
    """Return (is ++, number of LoRA branches) of an entry of ``schedule.json``; None if it is another system."""
    if "hybrid_queries" in entry or entry["classification_loss_aux"] not in (None, "quality-aware"):
        return None
    return entry["mixed_selection"], len(entry["k_per_branch"])


def with_preset(group: str) -> list[str]:
    """Return the names in a group of ``schedule.json`` whose configuration we have a preset of its own for."""
    if not (store.folder() / "schedule.json").is_file():
        return []
    schedule = store.load_json("schedule")
    stems = {preset.name.rpartition("/")[2] for preset in list_presets()}
    names = []
    for name in schedule[group]:
        system = system_of_config(schedule["configs"][name]) if name in schedule["configs"] else None
        if system is not None:
            plus_plus, branches = system
            if base_name(plus_plus) + (f"-lora{branches}" if branches else "") in stems:
                names.append(name)
    return names
