"""Names of the authors' checkpoints: every published list maps onto a model, one to one, in both directions."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.branches import LoRAConfig
from lora_detr.checkpoints.official.file import BIAS_TABLE, POSITION_INDEX, OfficialFile, position_index
from lora_detr.checkpoints.official.keys import aliases, to_official, to_ours
from lora_detr.checkpoints.official.system import recognise
from lora_detr.errors import CheckpointError
from tests.golden import store

# A system that there is no model of.
UNSUPPORTED = "ufusion"

LISTS = sorted(path.stem for path in (store.folder() / "state_keys").glob("*.json"))
SUPPORTED = [name for name in LISTS if not name.startswith(UNSUPPORTED)]


@functools.cache
def listing(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.folder() / "state_keys" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def empty_file(name: str) -> OfficialFile:
    """Return a file with the names, shapes and types of a list and no values, but for those that names follow from."""
    tensors: dict[str, Tensor] = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in listing(name)["keys"]
    }
    for key in tensors:
        if key.endswith(POSITION_INDEX):
            tensors[key] = position_index(tensors[key.replace(POSITION_INDEX, BIAS_TABLE)])
    return OfficialFile(Path(f"{name}.pth"), tensors)


def number(text: str, pattern: str, default: int) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else default


def test_there_are_lists_of_every_system() -> None:
    store.require(SUPPORTED, "names of parameters")
    prefixes = {re.match(r"[a-z]+?(?=\d|_)", name)[0] for name in SUPPORTED}  # type: ignore[index]
    assert prefixes == {"deformable", "lora", "msdetr", "naive", "relation"}
    assert any("swin" in name for name in SUPPORTED)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_list_is_recognised_and_fits_its_model_exactly(name: str) -> None:
    file, text = empty_file(name), listing(name)["description"]
    config = recognise(file).config
    system = (
        "relation" if "Relation" in text else "ms-detr" if "MS-DETR" in text or name == "naive1_300" else "deformable"
    )
    assert config.model.kind == system
    assert config.model.num_queries == number(text, r"(\d+) queries", 900 if system == "relation" else 300)
    assert len(config.branches) == number(text, r"(\d+) (?:LoRA branches|auxiliary FFNs)", int(system == "ms-detr"))
    ranks = {branch.rank for branch in config.branches if isinstance(branch, LoRAConfig)}
    assert ranks == ({number(text, r"rank (\d+)", 0)} if "LoRA" in text else set())
    assert config.data.num_classes == "coco91"
    with torch.device("meta"):
        model = config.build_model(91, load_weights=False)
    file.check_fit(model)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {to_ours(key) for key in listing(name)["frozen_parameters"]}


@pytest.mark.parametrize("name", SUPPORTED)
def test_names_come_back(name: str) -> None:
    file = empty_file(name)
    names = [key for key in file.tensors if not key.endswith(POSITION_INDEX)]
    ours = {key: to_ours(key) for key in names}
    assert None not in ours.values()
    back = {to_official(own or "", family=file.family) for own in ours.values()}
    second = aliases(sorted(filter(None, back)))
    assert back | set(second.values()) == set(names)
    assert {frozenset(pair) for pair in listing(name)["aliased_keys"]} == {frozenset(pair) for pair in second.items()}
    # One tensor of ours for each official one, but for the two names of a head.
    assert len(set(ours.values())) == len(names) - len(second)


def test_the_order_of_k_is_that_of_the_system() -> None:
    expected = {"lora3_r32_300": [6, 4, 2], "naive3_300": [6, 2, 4], "lora3_relation_r50": [2, 4, 6]}
    expected |= {"lora2_r32_300": [6, 3], "lora2_relation_r50": [3, 6], "lora1_relation_swin_l": [6]}
    for name, ks in expected.items():
        assert [branch.matcher.k for branch in recognise(empty_file(name)).config.branches] == ks, name


def test_a_system_without_model_is_refused_by_its_first_strange_names() -> None:
    (name,) = [name for name in LISTS if name.startswith(UNSUPPORTED)]
    with pytest.raises(
        CheckpointError, match=r"20 of \d+ tensor names are not recognised: transformer\.fusion\.0\.0\.weight"
    ) as caught:
        recognise(empty_file(name))
    assert caught.value.code == "K08"
    assert "supported are two-stage Deformable-DETR" in caught.value.remedy


@pytest.mark.parametrize("layers", [2, 6, 11])
def test_proposal_heads_of_relation_detr_are_the_last_of_ours(layers: int) -> None:
    official, ours = "transformer.encoder_class_head.weight", f"detector.heads.classes.{layers}.weight"
    assert to_ours(official, num_layers=layers) == ours
    assert to_official(ours, family="relation", num_layers=layers) == official
    before = f"detector.heads.classes.{layers - 1}.weight"
    assert (
        to_official(before, family="relation", num_layers=layers)
        == f"transformer.decoder.class_head.{layers - 1}.weight"
    )


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("transformer.decoder.layers.4.linear1.bias", "detector.decoder.layers.4.ffn.linear1.bias"),
        ("transformer.decoder.layers.4.linear3.bias", "branches.members.0.layers.4.linear1.bias"),
        ("transformer.decoder.layers.4.linear12.bias", "branches.members.4.layers.4.linear2.bias"),
        ("transformer.decoder.layers.4.norm3.bias", "detector.decoder.layers.4.ffn.norm.bias"),
        ("transformer.decoder.layers.4.norm6.bias", "branches.members.2.layers.4.norm.bias"),
        ("transformer.decoder.layers.0.linear2_lora.lora_layers.2.A", "branches.members.2.layers.0.a2"),
    ],
)
def test_networks_of_branches_are_numbered_on(official: str, ours: str) -> None:
    assert (to_ours(official), to_official(ours)) == (ours, official)


@pytest.mark.parametrize(
    "name",
    [
        "something.else",
        "backbone.0.features.1.0.attn.relative_position_index",
        "backbone.0.fc.weight",
        "backbone.fc.weight",
        "transformer.encoder.layers.0.linear3.weight",
        "transformer.reference_points.weight",
        "_classes_",
    ],
)
def test_names_of_nothing_are_none(name: str) -> None:
    assert to_ours(name) is None
    assert to_official(name) is None
    assert to_official("detector.query_groups.hybrid.classes.weight", family="deformable") is None
