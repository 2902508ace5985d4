"""A preset, a YAML file or a run directory: what a name stands for, and what is read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.config.base import Strict
from lora_detr.config.presets import find_preset
from lora_detr.config.source import Source, composition, find_source, load_source
from lora_detr.errors import ConfigError


class Settings(Strict):
    seed: int = 0
    name: str = "run"
    betas: tuple[float, ...] = (0.9,)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_text_that_ends_as_a_yaml_file_is_one() -> None:
    for name in ("mine.yaml", "folder/mine.yml", "deformable.yaml"):
        assert find_source(name) == Source(Path(name), Path(name))


def test_a_preset_comes_before_a_run_directory_of_its_name() -> None:
    write("deformable/config.yaml", "seed: 1\n")
    assert find_source("deformable") == Source(find_preset("deformable"), "deformable")
    assert find_source("./deformable") == Source(Path("deformable/config.yaml"), None)


def test_a_run_directory_is_read_as_a_file_on_top_of_the_schema(here: Path) -> None:
    write("runs/one/config.yaml", "seed: 1\nname: one\n")
    more = write("more.yaml", "name: two\n")
    for name in ("runs/one", "runs/one/", str(here / "runs/one")):
        loaded = load_source(Settings, find_source(name), files=[more], overrides=["betas=[0.5]"])
        assert loaded.config == Settings(seed=1, name="two", betas=(0.5,))
        path = Path(name) / "config.yaml"
        assert loaded.origin == {"seed": f"file {path}", "name": f"file {more}", "betas.0": "override"}


def test_a_file_may_extend_another() -> None:
    write("base.yaml", "seed: 1\nname: base\n")
    write("mine.yaml", "extends: base.yaml\nname: mine\n")
    loaded = load_source(Settings, find_source("mine.yaml"), overrides=["betas=[0.5]"])
    assert loaded.config == Settings(seed=1, name="mine", betas=(0.5,))
    assert loaded.origin == {"seed": "preset base", "name": "preset mine", "betas.0": "override"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deformable-lora33", "unknown preset 'deformable-lora33'; did you mean 'deformable-lora3'?"),
        ("runs/absent", "unknown preset 'runs/absent'"),
        ("", "unknown preset ''"),
        ("folder", "folder: this folder holds no config.yaml"),
        ("notes.txt", "notes.txt: expected a file that ends in .yaml or .yml"),
    ],
)
def test_what_stands_for_nothing(name: str, message: str) -> None:
    write("folder/other.yaml", "")
    write("notes.txt", "seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        find_source(name)
    assert caught.value.message == message
    assert "run directory" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "schema defaults + 0 settings"),
        ("description: words\nseed: 1\n", "schema defaults + 1 setting"),
        ("extends: deformable\na: {b: 1, c: [1, 2], d: {}}\n", "preset deformable + 4 settings"),
        ("extends: base.yaml\nseed: 1\nname: x\n", "base.yaml + 2 settings"),
    ],
)
def test_composition_counts_what_the_file_itself_sets(text: str, expected: str) -> None:
    write("mine.yaml", text)
    assert composition(find_source("mine.yaml")) == expected


def test_composition_of_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        composition(find_source("absent.yaml"))
