"""Presets are found by name, by stem, and described by their header."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.config.presets import PresetInfo, configs_root, describe, find_preset, list_presets, short_name
from lora_detr.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("a", "b", "ablations"):
        (tmp_path / folder).mkdir()
    (tmp_path / "base.yaml").write_text("# Base.\n#\n#   loradetr train --preset base\nlr: 1\n# not a header\n")
    (tmp_path / "a" / "twin.yaml").write_text("lr: 1\n")
    (tmp_path / "b" / "twin.yaml").write_text("lr: 2\n")
    (tmp_path / "b" / "only.yaml").write_text("")
    (tmp_path / "ablations" / "table1.yaml").write_text("rows: []\n")
    return tmp_path


def test_list_leaves_out_ablation_tables(root: Path) -> None:
    assert [preset.name for preset in list_presets(root)] == ["a/twin", "b/only", "b/twin", "base"]


def test_description_is_the_header(root: Path) -> None:
    assert describe(root / "base.yaml") == "Base.\n\nloradetr train --preset base"
    assert describe(root / "b" / "only.yaml") == ""


def test_find_by_name_and_by_stem(root: Path) -> None:
    assert find_preset("a/twin", root) == root / "a" / "twin.yaml"
    assert find_preset("only", root) == root / "b" / "only.yaml"


def test_the_short_name_is_one_that_finds_the_same_preset(root: Path) -> None:
    presets = list_presets(root)
    names = [short_name(preset, presets) for preset in presets]
    assert names == ["a/twin", "only", "b/twin", "base"]
    assert [find_preset(name, root) for name in names] == [preset.path for preset in presets]


def test_a_preset_that_is_named_as_another_in_a_folder_keeps_its_name(root: Path) -> None:
    (root / "only.yaml").write_text("lr: 3\n")
    presets = list_presets(root)
    assert [short_name(preset, presets) for preset in presets] == ["a/twin", "b/only", "b/twin", "base", "only"]


@pytest.mark.parametrize(
    ("header", "title", "paper"),
    [
        ("", "", ()),
        ("One line.", "One line.", ()),
        ("A sentence that\ngoes on.\nPaper: Table 2: 43.7 AP.", "A sentence that ...", ("Table 2: 43.7 AP.",)),
        ("A.\nPaper: Table 2,\nlast row: 49 AP.\nCommand: x", "A.", ("Table 2, last row: 49 AP.",)),
        ("A.\nPaper: one.\nPaper: two.\n\nPaper is white.", "A.", ("one.", "two.")),
    ],
)
def test_title_and_published_figures_come_from_the_description(header: str, title: str, paper: tuple[str, ...]) -> None:
    preset = PresetInfo("any", Path("any.yaml"), header)
    assert (preset.title, preset.paper) == (title, paper)


def test_unknown_preset_suggests_and_lists(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'base'") as caught:
        find_preset("bsae", root)
    assert "a/twin" in caught.value.remedy


@pytest.mark.parametrize("name", ["../base", "twin", "table1", "/etc/passwd", ""])
def test_no_preset_by_a_path_or_an_ambiguous_stem(root: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        find_preset(name, root)


def test_the_shipped_folder_is_found() -> None:
    assert configs_root().name == "configs"
