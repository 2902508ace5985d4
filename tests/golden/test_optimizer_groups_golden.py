"""Every parameter is in the official group, with the official rate and decay; the official ones are frozen."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lora_detr.checkpoints.official.keys import to_ours
from lora_detr.config.load import load_config
from lora_detr.recipe.run_config import RunConfig
from lora_detr.training.optim import build_optimizer
from tests.golden import store
from tests.golden.systems import run_config

NAME = "optimizer_groups"
LORA_KEY = re.compile(r"\.lora_layers\.(\d+)\.[AB]$")


def _keys(entry: dict[str, Any]) -> list[str]:
    return [key for group in entry["groups"] for key in group["keys"]]


FFN_KEY = re.compile(r"\.layers\.0\.linear(\d+)\.weight$")


def _config(entry: dict[str, Any]) -> RunConfig | None:
    """Return the configuration an entry describes, or None if it is of a system that has no preset."""
    keys = _keys(entry)
    if any(to_ours(key) is None for key in keys):
        return None
    lora = {match.group(1) for key in keys if (match := LORA_KEY.search(key))}
    networks = {match.group(1) for key in keys if ".decoder." in key and (match := FFN_KEY.search(key))}
    if len(networks) > 2:
        return load_config(RunConfig, preset=f"deformable-ffn{len(networks) // 2 - 1}").config
    if any(key.startswith("neck.") for key in keys):
        base = "relation-swin-l" if any("backbone.0.features" in key for key in keys) else "relation"
        return load_config(RunConfig, preset=f"{base}-lora{len(lora)}" if lora else base).config
    return run_config("query_embed.weight" in keys, len(lora))


def _names() -> list[str]:
    if not (store.folder() / f"{NAME}.json").is_file():
        return []
    return [name for name, entry in store.load_json(NAME).items() if _config(entry) is not None]


def _model(config: RunConfig, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return config.build_model(num_classes, load_weights=False)


def test_values_exist() -> None:
    assert len(store.require(_names(), NAME)) >= 2, "a baseline and one with branches are expected"


@pytest.mark.parametrize("name", _names())
def test_groups(name: str) -> None:
    entry = store.load_json(NAME)[name]
    config = _config(entry)
    assert config is not None
    # The file does not name the number of classes; COCO's 91 is that of every official script.
    model = _model(config, 91)
    optimizer = build_optimizer(model, config.train.optimizer)
    name_of = {parameter: name for name, parameter in model.named_parameters()}

    expected: dict[tuple[float, float], set[str]] = {}
    for group in entry["groups"]:
        decay = group.get("weight_decay", entry.get("weight_decay"))
        expected.setdefault((group["lr"], decay), set()).update(to_ours(key) or "" for key in group["keys"])
    found: dict[tuple[float, float], set[str]] = {}
    for group in optimizer.param_groups:
        rate = next((lr for lr, _ in expected if lr == pytest.approx(group["lr"])), group["lr"])
        found.setdefault((rate, group["weight_decay"]), set()).update(name_of[one] for one in group["params"])
    assert found == {key: names for key, names in expected.items() if names}

    total = sum(group["num_parameters"] for group in entry["groups"])
    assert sum(one.numel() for group in optimizer.param_groups for one in group["params"]) == total
    for group in optimizer.param_groups:
        assert list(group["betas"]) == entry["betas"]
        assert group["eps"] == entry["eps"]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {to_ours(key) for key in entry["frozen"]}
