"""A part of settings is found by its key path, and can be laid over other settings."""

from __future__ import annotations

import pytest

from lora_detr.config.section import cut, cut_origin, select
from lora_detr.config.tree import flatten, merge
from lora_detr.errors import ConfigError
from lora_detr.json_value import JSON

TREE: dict[str, JSON] = {
    "model": {"backbone": {"name": "resnet50", "frozen": None}, "heads": 8},
    "branches": [{"rank": 32, "matcher": {"k": 6}}, {"rank": 16, "matcher": {"k": 4}}],
    "betas": [0.9, 0.999],
    "rules": [],
}
ORIGIN = {leaf: f"origin of {leaf}" for leaf, _ in flatten(TREE)}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.backbone", {"name": "resnet50", "frozen": None}),
        ("model.backbone.frozen", None),
        ("branches.1.matcher", {"k": 4}),
        ("betas.1", 0.999),
        ("rules", []),
    ],
)
def test_select(path: str, value: JSON) -> None:
    assert select(TREE, path) == value


@pytest.mark.parametrize(
    ("path", "part", "shown"),
    [
        ("model.backbone", {"model": {"backbone": {"name": "resnet50", "frozen": None}}}, "model.backbone"),
        ("model.heads", {"model": {"heads": 8}}, "model.heads"),
        ("branches", {"branches": TREE["branches"]}, "branches"),
        ("branches.1.matcher.k", {"branches": [{"matcher": {"k": 4}}]}, "branches.0.matcher.k"),
        ("betas.1", {"betas": [0.999]}, "betas.0"),
        ("rules", {"rules": []}, "rules"),
    ],
)
def test_cut_keeps_the_part_in_its_place_and_its_origins(path: str, part: JSON, shown: str) -> None:
    assert cut(TREE, path) == part
    inside = [leaf for leaf in ORIGIN if leaf == path or leaf.startswith(f"{path}.")]
    expected = {shown + leaf.removeprefix(path): f"origin of {leaf}" for leaf in inside}
    assert cut_origin(ORIGIN, TREE, path) == expected
    assert expected


def test_a_part_laid_over_its_whole_changes_nothing() -> None:
    for path in ("model", "model.backbone", "branches", "betas", "rules"):
        assert merge(TREE, cut(TREE, path)) == TREE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.bakbone", "`model.bakbone`: unknown key; did you mean 'backbone'?"),
        ("backbone.name", "`backbone.name`: unknown key; did you mean 'model.backbone'?"),
        ("models", "`models`: unknown key; did you mean 'model'?"),
        ("zzz", "`zzz`: unknown key"),
        ("", "``: unknown key"),
        ("model..name", "`model..name`: unknown key"),
        ("branches.2", "`branches.2`: `branches` is a list of 2, counted from 0, so it has no '2'"),
        ("branches.rank", "`branches.rank`: `branches` is a list of 2, counted from 0, so it has no 'rank'"),
        ("rules.0", "`rules.0`: `rules` is an empty list, so it has no '0'"),
        ("model.heads.x", "`model.heads.x`: `model.heads` is a single value, which has no keys"),
    ],
)
def test_what_is_not_there_is_named_c01(path: str, message: str) -> None:
    for function in (select, cut):
        with pytest.raises(ConfigError) as caught:
            function(TREE, path)
        assert (caught.value.message, caught.value.code) == (message, "C01")
        assert caught.value.remedy


def test_the_remedy_lists_the_keys_of_the_section() -> None:
    with pytest.raises(ConfigError) as caught:
        select(TREE, "model.bakbone")
    assert caught.value.remedy == "known keys of `model`: backbone, heads"
