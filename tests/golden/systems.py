"""What the reference values say, in our own terms: which entries we can run, targets, criteria and names of losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.report import LossKey, LossReport
from lora_detr.matchers import TopK
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import PaddedTargets, Target
from tests.golden import store

OFFICIAL_KINDS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


PRESETS = {
    "deformable": "deformable",
    "lora": "deformable-lora3",
    "naive": "deformable-ffn3",
    "ms": "ms-detr",
    "relation": "relation",
    "lora_relation": "relation-lora3",
}
"""Preset whose losses an official configuration has, by its name without the number of branches."""


def preset_of(official: str) -> str:
    """Return the preset of an official configuration, such as ``lora3``."""
    return PRESETS[official.rstrip("0123456789")]


def padded(images: Sequence[tuple[Tensor, Tensor]]) -> PaddedTargets:
    """Return (labels, boxes) of each image as one rectangular set."""
    return PaddedTargets.from_targets(
        [Target(boxes, labels, image_id, (1, 1)) for image_id, (labels, boxes) in enumerate(images)]
    )


def criterion(
    preset: str,
    num_layers: int,
    ks: Sequence[int],
    *,
    merge: bool | None = None,
    threshold: float | None = None,
    class_weight: float | None = None,
    repeats: int | None = None,
) -> Criterion:
    """Return the criterion of a preset for another number of layers and branches.

    Args:
        preset: whose losses are meant.
        num_layers: L.
        ks: k of each branch.
        merge: unite the branches' pairs with the one-to-one pairs; None leaves it to the preset, like all that follow.
        threshold: tau.
        class_weight: alpha.
        repeats: copies of a target for hybrid queries.
    """
    config = load_config(RunConfig, preset=preset).config
    loss = config.loss
    if merge is not None:
        loss = loss.model_copy(update={"branch": loss.branch.model_copy(update={"merge_one_to_one": merge})})
    if repeats is not None:
        loss = loss.model_copy(update={"hybrid": loss.hybrid.model_copy(update={"repeats": repeats})})
    tau = (0.4 if threshold is None else threshold,)
    alpha = (0.3 if class_weight is None else class_weight,)
    names = [f"branch{i}" for i in range(len(ks))]
    return Criterion(num_layers, loss, names, [TopK([k], tau, alpha) for k in ks], config.model.has_denoising)


def official_name(key: LossKey, num_layers: int, branch_suffix: str = "_o2m_lora_") -> str:
    """Return the official name of one of our loss terms in the Deformable family.

    Args:
        key: our name.
        num_layers: L; the last layer has no number.
        branch_suffix: what stands before the number of a branch; ``_o2m`` alone where there is no number (MS-DETR).
    """
    name = OFFICIAL_KINDS[key.kind]
    if key.source == "encoder":
        return f"{name}_enc"
    if key.layer != num_layers - 1:
        name += f"_{key.layer}"
    if key.source == "primary":
        return name
    return name + branch_suffix + (key.source.removeprefix("branch") if branch_suffix.endswith("_") else "")


def official_relation_name(key: LossKey, num_layers: int) -> str:
    """Return the official name of one of our loss terms in the Relation family."""
    name = {"class": "loss_class", "l1": "loss_bbox", "giou": "loss_giou"}[key.kind]
    if key.source in ("encoder", "hybrid_encoder"):
        return f"{name}_enc" + ("_hybrid" if key.source == "hybrid_encoder" else "")
    layer = "" if key.layer == num_layers - 1 else f"_{key.layer}"
    if key.source == "denoising":
        return f"{name}_dn{layer}"
    if key.source == "hybrid":
        return f"{name}{layer}_hybrid"
    return name + layer + (f"_lora_{key.source.removeprefix('branch')}" if key.source != "primary" else "")


def check_terms(
    report: LossReport,
    expected: dict[str, Any],
    name_of: Callable[[LossKey], str],
    *,
    relative: float,
    absolute: float,
) -> None:
    """Compare every term's value and weight; terms without weight are for logging only and have no counterpart."""
    weighted = {name: loss for name, loss in expected.items() if loss["weight"] is not None}
    ours = {name_of(term.key): term for term in report.terms()}
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


def scripts(group: str) -> list[str]:
    """Return the names in a group of ``schedule.json`` that are configurations of official scripts."""
    if not (store.folder() / "schedule.json").is_file():
        return []
    schedule = store.load_json("schedule")
    return [name for name in schedule[group] if name in schedule["configs"]]


def script_config(name: str) -> tuple[dict[str, Any], RunConfig]:
    """Return an entry of ``schedule.json`` with the preset that stands for it."""
    entry = store.load_json("schedule")["configs"][name]
    count = len(entry["k_per_branch"])
    if "hybrid_queries" in entry:
        base = "relation-swin-l" if "swin" in name else "relation"
    else:
        base = base_name(entry["mixed_selection"])
    kind = "ffn" if entry.get("classification_loss_aux") == "focal" else "lora"
    return entry, load_config(RunConfig, preset=f"{base}-{kind}{count}" if count else base).config
