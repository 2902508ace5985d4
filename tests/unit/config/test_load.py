"""Precedence, merging, origins and messages of the loader, on a small schema of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from lora_detr.config.base import Strict
from lora_detr.config.dump import ABSENT, diff_configs, dump_config
from lora_detr.config.load import Loaded, load_config
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.errors import ConfigError


class TopK(Strict):
    kind: Literal["topk"] = "topk"
    k: int = Field(4, ge=1)


class Hungarian(Strict):
    kind: Literal["hungarian"] = "hungarian"
    class_weight: float = 2.0


Matcher = Annotated[TopK | Hungarian, Field(discriminator="kind")]


class Branch(Strict):
    rank: int = Field(32, ge=1)
    matcher: Matcher = TopK()


class Optimizer(Strict):
    lr: float = Field(1e-4, gt=0)
    lr_backbone: float = Field(1e-5, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)


class Root(Strict):
    name: str = "run"
    amp: bool = False
    seed: int = 0
    workers: int | Literal["auto"] = "auto"
    clip: float | None = 0.1
    folder: Path = Path("runs")
    optimizer: Optimizer = Optimizer(lr=2e-4)
    matcher: Matcher = TopK(k=6)
    branches: tuple[Branch, ...] = (Branch(), Branch())
    scales: dict[str, float] = {}

    @model_validator(mode="after")
    def check(self) -> Root:
        """Refuse a combination of two keys."""
        if self.seed == 13 and self.amp:
            raise ValueError("`seed` is 13 but `amp` is true; choose one")
        return self


def load(*overrides: str, preset: str | Path | None = None, files: tuple[Path, ...] = ()) -> Loaded[Root]:
    return load_config(Root, preset=preset, files=files, overrides=overrides)


def refused(*overrides: str, files: tuple[Path, ...] = ()) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, files=files)
    return caught.value


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_alone() -> None:
    loaded = load()
    assert loaded.config == Root()
    assert set(loaded.origin.values()) == {"schema"}
    assert loaded.origin["branches.1.matcher.k"] == "schema"


def test_precedence_and_origin(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1\nname: base\nclip: 1.0\noptimizer: {lr: 1.0}\n")
    preset = write(tmp_path / "mine.yaml", "extends: base.yaml\ndescription: x\nname: mine\nseed: 2\n")
    file = write(tmp_path / "file.yaml", "seed: 3\namp: true\n")
    loaded = load("seed=4", preset=preset, files=(file,))
    config = loaded.config
    assert (config.seed, config.name, config.clip, config.amp) == (4, "mine", 1.0, True)
    assert (config.optimizer.lr, config.optimizer.lr_backbone) == (1.0, 1e-5)
    origin = loaded.origin
    assert origin["seed"] == "override"
    assert origin["amp"] == f"file {file}"
    assert origin["name"] == "preset mine"
    assert origin["optimizer.lr"] == "preset base"
    assert origin["optimizer.lr_backbone"] == "schema"


def test_merging_keeps_the_default_instance_of_a_section() -> None:
    assert load("optimizer.lr_backbone=0.5").config.optimizer == Optimizer(lr=2e-4, lr_backbone=0.5)


def test_an_override_indexes_a_list_and_leaves_its_neighbours() -> None:
    loaded = load("branches.1.rank=16", "branches.0.matcher.k=2")
    assert [branch.rank for branch in loaded.config.branches] == [32, 16]
    assert loaded.config.branches[0].matcher == TopK(k=2)
    assert loaded.origin["branches.1.rank"] == "override"
    assert loaded.origin["branches.0.rank"] == "schema"


def test_a_list_is_replaced(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "branches:\n  - {rank: 8}\n")
    loaded = load(files=(file,))
    assert loaded.config.branches == (Branch(rank=8),)
    assert loaded.origin["branches.0.rank"] == f"file {file}"
    assert load("branches=[]").config.branches == ()


def test_another_kind_replaces_the_mapping() -> None:
    loaded = load("matcher.class_weight=3", "matcher.kind=hungarian")
    assert loaded.config.matcher == Hungarian(class_weight=3.0)
    assert "matcher.k" not in loaded.origin
    assert load("matcher.kind=topk").config.matcher == TopK(k=6)


def test_the_last_of_two_overrides_wins_and_null_is_a_value() -> None:
    assert load("seed=1", "seed=2", "clip=null").config.seed == 2
    assert load("clip=").config.clip is None


def test_sources_are_not_edited_by_later_ones() -> None:
    assert load("scales.a=1").config.scales == {"a": 1.0}
    assert load().config.scales == {}


def test_unknown_key_names_the_nearest_c01() -> None:
    error = refused("optimizer.lr_bacbone=0.1")
    assert error.code == "C01"
    assert error.exit_code == 2
    assert "`optimizer.lr_bacbone`" in error.message
    assert "'lr_backbone'" in error.message
    assert "override" in error.message


def test_unknown_key_in_a_list_of_unions_and_in_another_section_c01() -> None:
    assert "`branches.0.matcher.kk`: unknown key; did you mean 'k'?" in refused("branches.0.matcher.kk=1").message
    assert "did you mean 'optimizer.betas'" in refused("betas=[0, 0]").message


def test_number_with_exponent_is_a_number_c02(tmp_path: Path) -> None:
    assert load(files=(write(tmp_path / "a.yaml", "optimizer:\n  lr: 1e-4\n"),)).config.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "found", "allowed"),
    [
        ("amp=no", "'no'", "true or false"),
        ("amp=1", "1", "true or false"),
        ("seed=1.5", "1.5", "an integer"),
        ("seed=true", "true", "an integer"),
        ("seed='1'", "'1'", "an integer"),
        ("name=5", "5", "text"),
        ("branches=5", "5", "a list"),
        ("optimizer=5", "5", "a mapping"),
        ("workers=many", "'many'", "an integer or one of 'auto'"),
        ("scales={a: x}", "'x'", "a number"),
    ],
)
def test_another_type_is_refused_c04(override: str, found: str, allowed: str) -> None:
    error = refused(override)
    assert f"is {found} (from override)" in error.message
    assert error.message.endswith(f"must be {allowed}")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("branches.0.rank=0", "at least 1"),
        ("optimizer.lr=-1", "greater than 0"),
        ("optimizer.lr_backbone=1", "less than 1"),
    ],
)
def test_out_of_range_names_the_limit_c05(override: str, allowed: str) -> None:
    error = refused(override)
    assert error.code == "C05"
    path, _, value = override.partition("=")
    assert error.message.startswith(f"`{path}` is {value}")
    assert error.message.split(" must be ")[1] in (allowed, f"{allowed}.0")


def test_a_missing_key_names_the_file_of_its_section(tmp_path: Path) -> None:
    class Part(Strict):
        needed: int
        other: int = 1

    class Whole(Strict):
        parts: tuple[Part, ...] = ()

    file = write(tmp_path / "settings.yaml", "parts: [{other: 2}]")
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, files=[file])
    assert caught.value.message == f"`parts.0.needed` must be given: it has no default (from file {file})"


def test_wrong_kind_lists_the_right_ones() -> None:
    error = refused("matcher.kind=hungarain")
    assert "`matcher.kind` is 'hungarain' (from override); must be one of 'topk', 'hungarian'" in error.message
    assert "did you mean 'hungarian'?" in error.message
    assert "'topk', 'hungarian'" in refused("branches=[{matcher: {k: 1}}]").message


def test_all_faults_are_reported_with_their_sources(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "seed: x\nnope: 1\n")
    lines = refused("optimizer.lr=0", files=(file,)).message.splitlines()
    assert len(lines) == 3
    assert sum(f"from file {file}" in line for line in lines) == 2


def test_cross_field_check_keeps_its_sentence() -> None:
    assert "`seed` is 13 but `amp` is true; choose one" in refused("seed=13", "amp=true").message


@pytest.mark.parametrize(
    "override", ["seed", "=1", "a..b=1", "branches.5.rank=1", "branches.rank=1", "seed.x=1", "seed=[1", "seed=010"]
)
def test_malformed_override_is_a_config_error(override: str) -> None:
    assert refused(override).exit_code == 2


def test_extends_is_one_level_deep_and_only_in_presets(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    deep = write(tmp_path / "c.yaml", "extends: b.yaml\n")
    with pytest.raises(ConfigError, match="one level"):
        load(preset=deep)
    with pytest.raises(ConfigError, match="presets only"):
        load(files=(tmp_path / "b.yaml",))
    with pytest.raises(ConfigError, match="must be the name"):
        load(preset=write(tmp_path / "d.yaml", "extends: [a, b]\n"))


def test_dump_reads_back_and_names_origins(tmp_path: Path) -> None:
    loaded = load("name='010 # no'", "optimizer.lr=1e-7", "scales={'a b': 1}", "branches.1.matcher={kind: hungarian}")
    text = dump_config(loaded.config, loaded.origin)
    assert load(files=(write(tmp_path / "a.yaml", text),)).config == loaded.config
    assert "  lr: 1e-07  # override\n" in text
    assert "  betas: [0.9, 0.999]  # schema\n" in text
    assert "#" not in dump_config(Root())
    assert list(read_yaml(tmp_path / "a.yaml")) == list(Root.model_fields)


@settings(max_examples=100, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    clip=st.floats(allow_nan=False, allow_infinity=False),
)
def test_dump_reads_back_for_any_text_and_number(
    tmp_path_factory: pytest.TempPathFactory, name: str, clip: float
) -> None:
    config = Root(name=name, clip=clip, scales={name: clip, "b": 1.0} if name else {})
    path = write(tmp_path_factory.mktemp("dump") / "a.yaml", dump_config(config))
    assert load(files=(path,)).config == config


def test_diff_lists_changed_and_absent_leaves() -> None:
    a, b = load().config, load("seed=1", "matcher.kind=hungarian").config
    assert diff_configs(a, b) == [
        ("seed", 0, 1),
        ("matcher.kind", "topk", "hungarian"),
        ("matcher.k", 6, ABSENT),
        ("matcher.class_weight", ABSENT, 2.0),
    ]
    assert diff_configs(a, a) == []
