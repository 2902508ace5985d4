"""Which configuration a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.config.run import RunConfig
from lora_detr.errors import ConfigError
from lora_detr.training import request as module
from lora_detr.training.request import Request, Resolved, branch_ks, resolve
from tests.small_runs import SMALL

DATA = Path("somewhere")  # `resolve` reads no data, so it need not exist


def config_of(**options: object) -> RunConfig:
    return resolve(Request(data=DATA, **options)).loaded.config  # type: ignore[arg-type]


def ks(config: RunConfig) -> list[int]:
    return [branch.matcher.k for branch in config.branches]


def refused(**options: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config_of(**options)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("options", "preset", "expected"),
    [
        ({}, "deformable", []),
        ({"baseline": "deformable"}, "deformable", []),
        ({"baseline": "deformable", "aux": 0}, "deformable", []),
        ({"baseline": "deformable", "aux": 1}, "deformable-lora1", [6]),
        ({"baseline": "deformable", "aux": 2}, "deformable-lora3", [6, 3]),
        ({"baseline": "deformable", "aux": 3}, "deformable-lora3", [6, 4, 2]),
        ({"baseline": "deformable", "aux": 5}, "deformable-lora3", [6, 5, 4, 3, 2]),
        ({"baseline": "deformable", "branches": ("topk:k=5", "topk:k=3")}, "deformable-lora3", [5, 3]),
        ({"baseline": "deformable-pp"}, "deformable-pp", []),
        ({"baseline": "deformable-pp", "aux": 1}, "deformable-pp-lora1", [6]),
        ({"baseline": "deformable-pp", "aux": 3}, "deformable-pp-lora3", [6, 4, 2]),
    ],
)
def test_baseline_and_number_of_branches_choose_the_preset(
    options: dict[str, object], preset: str, expected: list[int]
) -> None:
    resolved = resolve(Request(data=DATA, **options))  # type: ignore[arg-type]
    assert resolved.preset == preset
    assert ks(resolved.loaded.config) == expected


def test_branches_bring_the_losses_of_the_paper_and_none_those_of_the_baseline() -> None:
    assert config_of(baseline="deformable").loss.primary.classification == "focal"
    assert config_of(baseline="deformable", aux=3).loss.primary.classification == "quality"


def test_aux_on_a_preset_changes_the_list_of_branches_and_nothing_else() -> None:
    whole, control = config_of(preset="deformable-lora3"), config_of(preset="deformable-lora3", aux=0)
    assert ks(whole) == [6, 4, 2]
    assert control == whole.model_copy(update={"branches": ()})


def test_more_branches_keep_the_settings_of_the_presets_first() -> None:
    config = config_of(preset=str(SMALL), aux=2)
    assert [(branch.rank, branch.matcher.k) for branch in config.branches] == [(4, 6), (4, 3)]


@pytest.mark.parametrize(("count", "expected"), [(0, ()), (1, (6,)), (3, (6, 4, 2)), (4, (6, 5, 3, 2))])
def test_k_of_each_branch(count: int, expected: tuple[int, ...]) -> None:
    assert branch_ks(count) == expected


def test_k_beyond_table_4_falls_from_six_to_two() -> None:
    for count in (4, 6, 7, 12):
        listed = branch_ks(count)
        assert (len(listed), listed[0], listed[-1]) == (count, 6, 2)
        assert list(listed) == sorted(listed, reverse=True)


def test_rank_changes_all_branches() -> None:
    config = config_of(baseline="deformable", aux=3, rank=48)
    assert [(branch.rank, branch.matcher.k) for branch in config.branches] == [(48, 6), (48, 4), (48, 2)]
    assert [branch.rank for branch in config_of(preset="deformable-lora3", rank=7).branches] == [7, 7, 7]
    assert "rank" in refused(baseline="deformable", aux=3, rank=0).message


def test_branch_specifications_in_the_words_of_the_paper() -> None:
    config = config_of(baseline="deformable", branches=("topk:k=6,tau=0.5,alpha=0.2", "lora/topk:k=3"))
    first, second = (branch.matcher for branch in config.branches)
    assert (first.k, first.threshold, first.class_weight) == (6, 0.5, 0.2)
    assert (second.k, second.threshold) == (3, 0.4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lorra/topk:k=3", "did you mean 'lora'?"),
        ("topk:k", "expected key=value"),
        ("topk:kk=3", "branches.0.matcher.kk"),
        ("topk:k=0", "branches.0.matcher.k"),
        ("topk:tau=0.4", "branches.0.matcher.k"),
        ("topk:k=three", "branches.0.matcher.k"),
    ],
)
def test_a_wrong_branch_specification_says_where(text: str, part: str) -> None:
    assert part in refused(baseline="deformable", branches=(text,)).message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"aux": 3, "branches": ("topk:k=6",)}, "--aux and --branch exclude each other"),
        ({"aux": -1}, "--aux -1"),
        ({"baseline": "deformabel"}, "did you mean 'deformable'?"),
        ({"preset": "deformable-lora33"}, "unknown preset 'deformable-lora33'; did you mean 'deformable-lora3'?"),
        ({"baseline": "deformabel", "preset": "deformable-lora3"}, "did you mean 'deformable'?"),
        ({"overrides": ("train.optimizer.lrr=1",)}, "did you mean"),
        ({"named": {"train.precision": "fp8"}}, "train.precision"),
    ],
)
def test_wrong_options(options: dict[str, object], part: str) -> None:
    assert part in refused(**options).message


def test_a_baseline_that_contradicts_the_preset_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BASELINES", ("deformable", "relation"))
    error = refused(baseline="relation", preset="deformable-lora3")
    assert error.message == "--baseline relation contradicts --preset deformable-lora3, which is a 'deformable'"
    assert config_of(baseline="deformable", preset="deformable-lora3").branches


def test_the_systems_of_one_class_are_told_apart() -> None:
    assert config_of(baseline="deformable-pp", preset="deformable-pp-lora3").branches
    for baseline, preset in (("deformable", "deformable-pp"), ("deformable-pp", "deformable")):
        assert "contradicts" in refused(baseline=baseline, preset=preset).message


def test_plus_plus_as_the_authors_trained_it() -> None:
    config = config_of(baseline="deformable-pp", aux=3)
    model = config.model
    assert (model.num_queries, model.dropout, model.mixed_selection, model.look_forward_twice) == (900, 0.0, True, True)
    assert config.loss.branch.merge_one_to_one
    assert config.evaluation.max_detections == 300
    assert {branch.rank for branch in config.branches} == {48}


def test_named_options_are_stronger_than_set_and_none_leaves_the_preset_alone() -> None:
    config = config_of(overrides=("train.epochs=7",), named={"train.epochs": 3, "train.batch_size": None})
    assert (config.train.epochs, config.train.batch_size) == (3, RunConfig().train.batch_size)


def test_the_data_given_is_stored_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve(Request(data=DATA))
    assert resolved.loaded.config.data.path == str(tmp_path / DATA)
    assert resolved.notes == ()


def test_auto_weights_are_replaced_by_what_is_installed() -> None:
    preset = resolve(Request(preset="deformable-tiny", data=DATA)).loaded
    assert preset.raw["model"]["backbone"]["weights"] == "auto"  # type: ignore[index, call-overload]
    assert preset.config.model.backbone.weights in ("imagenet", "none")


class TestWithoutData:
    """``train`` without ``--data``."""

    @pytest.fixture(autouse=True)
    def _empty_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in an empty folder, where the generated set would appear in ``generated``."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(module, "cached", lambda name: tmp_path / "generated" / name)

    def resolved(self, **options: object) -> Resolved:
        return resolve(Request(**options))  # type: ignore[arg-type]

    def test_coco_is_used_when_it_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "data" / "coco").mkdir(parents=True)
        resolved = self.resolved(baseline="deformable", aux=3)
        assert (resolved.preset, resolved.data) == ("deformable-lora3", tmp_path / "data" / "coco")
        assert resolved.notes == ("no --data: using data/coco",)

    @pytest.mark.parametrize(
        ("options", "preset", "expected"),
        [
            ({}, "deformable-tiny", []),
            ({"baseline": "deformable", "aux": 0}, "deformable-tiny", []),
            ({"baseline": "deformable", "aux": 1}, "deformable-tiny-lora3", [6]),
            ({"baseline": "deformable", "aux": 3}, "deformable-tiny-lora3", [6, 4, 2]),
        ],
    )
    def test_else_generated_images_with_the_tiny_preset(
        self, tmp_path: Path, options: dict[str, object], preset: str, expected: list[int]
    ) -> None:
        resolved = self.resolved(**options)
        assert (resolved.preset, resolved.data) == (preset, tmp_path / "generated" / "shapes")
        assert ks(resolved.loaded.config) == expected
        assert resolved.notes == ("no --data and no data/coco: using the generated set 'shapes', with the tiny preset",)

    def test_a_preset_given_by_name_is_kept(self) -> None:
        resolved = self.resolved(preset="deformable-tiny-lora3")
        assert resolved.preset == "deformable-tiny-lora3"
        assert resolved.notes == ("no --data and no data/coco: using the generated set 'shapes'",)

    def test_data_that_a_setting_names_is_used(self) -> None:
        resolved = self.resolved(baseline="deformable", overrides=("data.path=elsewhere",))
        assert (resolved.preset, resolved.data, resolved.notes) == ("deformable", Path("elsewhere").resolve(), ())
        assert resolved.loaded.config.data.path == str(Path("elsewhere").resolve())

    def test_a_file_of_settings_that_names_no_data_leaves_the_choice(self, tmp_path: Path) -> None:
        (tmp_path / "more.yaml").write_text("train: {epochs: 3}\n")
        resolved = self.resolved(preset="deformable-tiny", files=(tmp_path / "more.yaml",))
        assert resolved.data == tmp_path / "generated" / "shapes"
