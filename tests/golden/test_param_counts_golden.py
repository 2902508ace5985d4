"""Sizes and names: exact parameter counts, and a state dict that maps onto official checkpoints key by key."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from lora_detr.branches import LoRAConfig
from lora_detr.checkpoints.official.keys import Family, aliases, to_official, to_ours
from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.matchers import TopKConfig
from lora_detr.recipe.run_config import RunConfig
from tests.golden import store

NAME = "param_counts"
# Beginning of a description -> (preset, preset at 900 queries); the longest that fits decides.
SYSTEMS = {
    "Deformable DETR": ("deformable", "deformable-pp"),
    "LoRA-DETR on Deformable DETR": ("deformable-lora3", "deformable-pp-lora3"),
    "naive multi-branch": ("deformable-ffn3", None),
    "MS-DETR": ("ms-detr", "ms-detr-pp"),
    "Relation-DETR R50": ("relation", "relation"),
    "Relation-DETR Swin-L": ("relation-swin-l", "relation-swin-l"),
    "LoRA Relation-DETR R50": ("relation-lora3", "relation-lora3"),
    "LoRA Relation-DETR Swin-L": ("relation-swin-l-lora3", "relation-swin-l-lora3"),
}
# Encoder levels fused as in MI-DETR: in the authors' folder, but neither in the paper nor described by it.
ELSEWHERE = "U-fusion"


def system_of(description: str) -> str | None:
    """Return the preset of a description; None for what is no system of the paper."""
    fitting = [prefix for prefix in SYSTEMS if description.startswith(prefix)]
    if not fitting or ELSEWHERE in description:
        return None
    small, large = SYSTEMS[max(fitting, key=len)]
    return large if "DETR++" in description or small.startswith("relation") else small


@functools.cache
def model_of(description: str, num_classes: int) -> nn.Module | None:
    """Build the described model on the meta device; None for another system."""
    preset = system_of(description)
    if preset is None:
        return None
    config = load_config(RunConfig, preset=preset).config
    found = re.search(r"(\d+) (?:LoRA branch|auxiliary FFN)", description)
    if found is not None:
        branch = config.branches[0]
        if isinstance(branch, LoRAConfig):
            rank = re.search(r"rank (\d+)", description)
            branch = branch.model_copy(update={"rank": int(rank.group(1)) if rank else 32})
        config = config.model_copy(update={"branches": (branch,) * int(found.group(1))})
    with torch.device("meta"):
        return config.build_model(num_classes, load_weights=False)


def _counted() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [name for name, entry in store.load_json(NAME)["variants"].items() if system_of(entry["config"])]


def _listed() -> list[str]:
    paths = sorted((store.folder() / "state_keys").glob("*.json"))
    return [path.stem for path in paths if system_of(_state_keys(path.stem)["description"])]


def _state_keys(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.folder() / "state_keys" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _family(names: Iterable[str]) -> Family:
    return "relation" if any(name.startswith(("neck", "backbone.conv1")) for name in names) else "deformable"


def _official(name: str, modules: dict[str, int]) -> str:
    """Return the official module, among those counted, that one of our parameters belongs to."""
    official = to_official(name, family=_family(modules))
    assert official is not None, name
    for candidate in (official, *aliases([official]).values()):
        owners = [module for module in modules if candidate == module or candidate.startswith(f"{module}.")]
        if owners:
            return max(owners, key=len)
    raise AssertionError(f"no module counts {official}")


def test_values_exist() -> None:
    variants = store.load_json(NAME)["variants"]
    for prefix in SYSTEMS:
        store.require([name for name in _counted() if variants[name]["config"].startswith(prefix)], prefix)
    assert len(_listed()) == len(_counted())
    others = variants.keys() - set(_counted())
    assert all(ELSEWHERE in variants[name]["config"] for name in others)


@pytest.mark.parametrize("name", _counted())
def test_parameter_counts(name: str) -> None:
    content = store.load_json(NAME)
    entry = content["variants"][name]
    model = model_of(entry["config"], content["num_classes"])
    assert model is not None
    trained = {key: value.numel() for key, value in model.named_parameters() if value.requires_grad}
    assert sum(trained.values()) == entry["trainable"]
    assert sum(value.numel() for value in model.parameters()) == entry["total_parameters"]
    if "Swin" not in entry["config"]:  # ours recomputes the positions within a window instead of storing them
        # Those that are stored: theirs normalise pixels elsewhere.
        stored = sum(value.numel() for value in model.state_dict().values())
        assert stored - entry["total_parameters"] == entry["buffer_elements"]
    modules: dict[str, int] = entry["trainable_by_module"]
    found = dict.fromkeys(modules, 0)
    for key, count in trained.items():
        found[_official(key, modules)] += count
    assert found == modules


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("deformable", "deformable_300"),
        ("deformable-lora1", "lora1_r32_300"),
        ("deformable-lora3", "lora3_r32_300"),
        ("deformable-pp", "deformable_pp_900"),
        ("deformable-pp-lora1", "lora1_r32_pp_900"),
        ("deformable-pp-lora3", "lora3_r48_pp_900"),
        ("deformable-pp-24ep", "deformable_pp_900"),
        ("deformable-pp-lora1-24ep", "lora1_r32_pp_900"),
        ("deformable-ffn3", "naive3_300"),
        ("ms-detr", "msdetr_300"),
        ("ms-detr-pp", "msdetr_pp_900"),
        ("relation", "relation_r50"),
        ("relation-24ep", "relation_r50"),
        ("relation-lora1", "lora1_relation_r50"),
        ("relation-lora3", "lora3_relation_r50"),
        ("relation-swin-l", "relation_swin_l"),
        ("relation-swin-l-lora3", "lora3_relation_swin_l"),
    ],
)
def test_a_preset_has_the_parameters_of_its_row(preset: str, name: str) -> None:
    content = store.load_json(NAME)
    loaded = load_config(RunConfig, preset=preset)
    with torch.device("meta"):
        model = loaded.config.build_model(content["num_classes"], load_weights=False)
    entry = content["variants"][name]
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == entry["trainable"]
    info = next(found for found in list_presets() if found.path.stem == preset)
    (paper,), text = info.paper, info.description
    # The paper's figure where it has one: Table 3 has none, so that the header states ours.
    if "paper_millions" in entry:
        assert f"{entry['paper_millions']} M parameters" in paper
    else:
        assert f"Parameters: {entry['trainable'] / 1e6:.1f} M" in text


@pytest.mark.parametrize("name", _listed())
def test_state_dict_maps_onto_official_checkpoints(name: str) -> None:
    listing = _state_keys(name)
    official = {key: (tuple(shape), dtype) for key, shape, dtype in listing["keys"] if not _recomputed(key)}
    classes = next(shape[0] for key, (shape, _) in official.items() if re.search(r"class_(embed|head)\.0\.bias$", key))
    model = model_of(listing["description"], classes)
    assert model is not None
    family = _family(official)
    ours = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in model.state_dict().items()
    }
    for key, found in official.items():
        assert ours[to_ours(key) or ""] == found, key
    back = {key: to_official(key, family=family) or "" for key in ours}
    assert {to_ours(value) for value in back.values()} == set(ours)
    second = aliases(back.values())
    assert set(back.values()) | set(second.values()) == set(official)
    assert {frozenset(pair) for pair in listing["aliased_keys"]} == {frozenset(pair) for pair in second.items()}
    frozen = {to_official(key, family=family) for key, value in model.named_parameters() if not value.requires_grad}
    assert frozen == set(listing["frozen_parameters"])


def _recomputed(key: str) -> bool:
    """Say whether a tensor follows from the window's size, so that ours is no part of a checkpoint."""
    return key.endswith("relative_position_index")


def test_low_rank_parameters_by_formula() -> None:
    """Each branch adds L * 2 r (D + F) parameters (Table 6's 47.3 M -> 48.1 M for one of rank 32)."""
    branch = LoRAConfig(rank=32, matcher=TopKConfig(k=1)).build(6, 256, 2048, 0.0)
    assert sum(value.numel() for value in branch.parameters()) == 6 * 2 * 32 * (256 + 2048) == 884_736
