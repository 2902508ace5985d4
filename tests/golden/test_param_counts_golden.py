"""Sizes and names: exact parameter counts, and a state dict that maps onto official checkpoints key by key."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
import torch
from torch import nn

from lora_detr.branches import LoRAConfig
from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.config.run import RunConfig
from lora_detr.matchers import TopKConfig
from lora_detr.models import DeformableDetrConfig
from lora_detr.training.official_keys import aliases, to_official, to_ours
from tests.golden import store

NAME = "param_counts"
SYSTEM = re.compile(r"(?P<lora>LoRA-DETR on )?Deformable DETR(?P<plus>\+\+)?[,:]")


@functools.cache
def model_of(description: str, num_classes: int) -> nn.Module | None:
    """Build the described model on the meta device; None for another system."""
    system = SYSTEM.match(description)
    if system is None:
        return None

    def number(pattern: str, default: int) -> int:
        found = re.search(pattern, description)
        return int(found.group(1)) if found else default

    count = number(r"(\d+) LoRA branch", 0)
    assert bool(count) == bool(system["lora"])
    branch = LoRAConfig(rank=number(r"rank (\d+)", 32), matcher=TopKConfig(k=1))
    model = DeformableDetrConfig(
        num_queries=number(r"(\d+) queries", 300),
        ffn_dim=number(r"FFN (\d+)", 2048),
        mixed_selection=bool(system["plus"]),
        look_forward_twice=bool(system["plus"]),
    )
    with torch.device("meta"):
        return RunConfig(model=model, branches=(branch,) * count).build_model(num_classes, load_weights=False)


def _counted() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [name for name, entry in store.load_json(NAME)["variants"].items() if SYSTEM.match(entry["config"])]


def _listed() -> list[str]:
    found = []
    for path in sorted((store.folder() / "state_keys").glob("*.json")):
        if SYSTEM.match(_state_keys(path.stem)["description"]):
            found.append(path.stem)
    return found


def _state_keys(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.folder() / "state_keys" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _official(name: str, modules: dict[str, int]) -> str:
    """Return the official module, among those counted, that one of our parameters belongs to."""
    official = to_official(name)
    assert official is not None, name
    for candidate in (official, *aliases([official]).values()):
        owners = [module for module in modules if candidate == module or candidate.startswith(f"{module}.")]
        if owners:
            return max(owners, key=len)
    raise AssertionError(f"no module counts {official}")


def test_values_exist() -> None:
    variants = store.load_json(NAME)["variants"]
    store.require([name for name in _counted() if "LoRA" in variants[name]["config"]], "parameters with LoRA")
    store.require([name for name in _counted() if "LoRA" not in variants[name]["config"]], "parameters without LoRA")
    store.require(_listed(), "names of parameters")


@pytest.mark.parametrize("name", _counted())
def test_parameter_counts(name: str) -> None:
    content = store.load_json(NAME)
    entry = content["variants"][name]
    model = model_of(entry["config"], content["num_classes"])
    assert model is not None
    trained = {key: value.numel() for key, value in model.named_parameters() if value.requires_grad}
    assert sum(trained.values()) == entry["trainable"]
    assert sum(value.numel() for value in model.parameters()) == entry["total_parameters"]
    assert sum(value.numel() for value in model.buffers()) == entry["buffer_elements"]
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
    ],
)
def test_a_preset_has_the_parameters_of_its_row(preset: str, name: str) -> None:
    content = store.load_json(NAME)
    loaded = load_config(RunConfig, preset=preset)
    with torch.device("meta"):
        model = loaded.config.build_model(content["num_classes"], load_weights=False)
    entry = content["variants"][name]
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == entry["trainable"]
    (paper,) = next(found for found in list_presets() if found.path.stem == preset).paper
    assert f"{entry['paper_millions']} M parameters" in paper


@pytest.mark.parametrize("name", _listed())
def test_state_dict_maps_onto_official_checkpoints(name: str) -> None:
    listing = _state_keys(name)
    official = {key: (tuple(shape), dtype) for key, shape, dtype in listing["keys"]}
    classes = next(shape[0] for key, (shape, _) in official.items() if key.endswith("class_embed.0.bias"))
    model = model_of(listing["description"], classes)
    assert model is not None
    ours = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in model.state_dict().items()
    }
    for key, found in official.items():
        assert ours[to_ours(key) or ""] == found, key
    back = {key: to_official(key) or "" for key in ours}
    assert {to_ours(value) for value in back.values()} == set(ours)
    second = aliases(back.values())
    assert set(back.values()) | set(second.values()) == set(official)
    assert {frozenset(pair) for pair in listing["aliased_keys"]} == {frozenset(pair) for pair in second.items()}
    frozen = {to_official(key) for key, value in model.named_parameters() if not value.requires_grad}
    assert frozen == set(listing["frozen_parameters"])


def test_low_rank_parameters_by_formula() -> None:
    """Each branch adds L * 2 r (D + F) parameters (Table 6's 47.3 M -> 48.1 M for one of rank 32)."""
    branch = LoRAConfig(rank=32, matcher=TopKConfig(k=1)).build(6, 256, 2048)
    assert sum(value.numel() for value in branch.parameters()) == 6 * 2 * 32 * (256 + 2048) == 884_736
