"""How settings are written where people read them: comments in a column, differences without noise."""

from __future__ import annotations

from lora_detr.config.base import Strict
from lora_detr.config.dump import ABSENT, diff_configs, dump_aligned, dump_config, dump_tree, dump_value
from lora_detr.config.yaml_subset import parse_yaml
from lora_detr.json_value import JSON

TREE: dict[str, JSON] = {
    "lr": 0.1,
    "text": "a  # b",
    "section": {"list": [1, 2], "items": [{"rank": 8}]},
    "long": "x" * 60,
    "empty": {},
}
ORIGIN = {"lr": "schema", "text": "preset a", "section": "file b", "long": "override", "empty": "schema"}


class Rule(Strict):
    pattern: str = "*"


class Settings(Strict):
    sizes: tuple[int, ...] | None = (1, 2)
    rules: tuple[Rule, ...] = ()
    clip: Rule | None = None
    scales: dict[str, float] = {}


def test_comments_stand_in_one_column_and_a_long_line_keeps_its_own() -> None:
    lines = dump_aligned(TREE, ORIGIN | {"section.list": "file b", "section.items.0.rank": "override"}).splitlines()
    columns = {line.rindex("#") for line in lines if "#" in line and len(line) < 60}
    assert columns == {len('text: "a  # b"') + 2}
    assert [line for line in lines if line.startswith("long")] == [f"long: {'x' * 60}  # override"]
    assert "section:" in lines


def test_aligned_text_holds_the_same_values() -> None:
    text = dump_aligned(TREE, ORIGIN)
    assert parse_yaml(text, "text") == TREE
    assert text.endswith("\n")
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_without_origins_nothing_is_aligned() -> None:
    assert dump_aligned(TREE, {}) == dump_tree(TREE)
    assert dump_tree({}) == ""
    assert dump_config(Settings()) == "sizes: [1, 2]\nrules: []\nclip: null\nscales: {}\n"


def test_a_value_alone_is_written_as_behind_its_key() -> None:
    values: list[JSON] = [None, True, 1e-4, "plain", "*.heads", [], [1, 2]]
    assert [dump_value(value) for value in values] == ["null", "true", "0.0001", "plain", '"*.heads"', "[]", "[1, 2]"]


def test_an_empty_list_beside_a_filled_one_is_no_difference_of_its_own() -> None:
    filled = Settings(rules=(Rule(),), scales={"a": 1.0})
    assert diff_configs(Settings(), filled) == [("rules.0.pattern", ABSENT, "*"), ("scales.a", ABSENT, 1.0)]
    assert diff_configs(filled, Settings()) == [("rules.0.pattern", "*", ABSENT), ("scales.a", 1.0, ABSENT)]


def test_null_beside_a_section_stays_a_difference() -> None:
    assert diff_configs(Settings(), Settings(clip=Rule())) == [("clip", None, ABSENT), ("clip.pattern", ABSENT, "*")]


def test_a_list_of_plain_values_is_one_difference() -> None:
    assert diff_configs(Settings(), Settings(sizes=(1, 3, 4))) == [("sizes", [1, 2], [1, 3, 4])]
    assert diff_configs(Settings(), Settings(sizes=())) == [("sizes", [1, 2], [])]
    assert diff_configs(Settings(sizes=None), Settings()) == [("sizes", None, [1, 2])]
    assert diff_configs(Settings(), Settings(sizes=(1, 2))) == []
