"""Which configuration a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.config.load import load_config
from lora_detr.errors import ConfigError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import request as module
from lora_detr.runs.request import Request, Resolved, branch_ks, resolve
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


# --baseline and --aux -> preset and k of each branch, in the order of the official code.
CHOICES: dict[tuple[str, int | None], tuple[str, list[int]]] = {
    ("deformable", None): ("deformable", []),
    ("deformable", 0): ("deformable", []),
    ("deformable", 1): ("deformable-lora1", [6]),
    ("deformable", 2): ("deformable-lora3", [6, 3]),
    ("deformable", 3): ("deformable-lora3", [6, 4, 2]),
    ("deformable", 5): ("deformable-lora3", [6, 5, 4, 3, 2]),
    ("deformable-pp", None): ("deformable-pp", []),
    ("deformable-pp", 0): ("deformable-pp", []),
    ("deformable-pp", 1): ("deformable-pp-lora1", [6]),
    ("deformable-pp", 2): ("deformable-pp-lora3", [6, 3]),
    ("deformable-pp", 3): ("deformable-pp-lora3", [6, 4, 2]),
    ("deformable-pp", 5): ("deformable-pp-lora3", [6, 5, 4, 3, 2]),
    ("relation", None): ("relation", []),
    ("relation", 0): ("relation", []),
    ("relation", 1): ("relation-lora1", [6]),
    ("relation", 2): ("relation-lora3", [3, 6]),
    ("relation", 3): ("relation-lora3", [2, 4, 6]),
    ("relation", 5): ("relation-lora3", [2, 3, 4, 5, 6]),
    ("ms-detr", None): ("ms-detr", [6]),
    ("ms-detr", 0): ("ms-detr", []),
    ("ms-detr", 1): ("ms-detr", [6]),
    ("ms-detr", 2): ("ms-detr", [6, 3]),
    ("ms-detr", 3): ("ms-detr", [6, 2, 4]),
    ("ms-detr", 5): ("ms-detr", [6, 5, 4, 3, 2]),
}


@pytest.mark.parametrize(("baseline", "aux"), CHOICES)
def test_baseline_and_number_of_branches_choose_the_preset(baseline: str, aux: int | None) -> None:
    preset, expected = CHOICES[baseline, aux]
    resolved = resolve(Request(data=DATA, baseline=baseline, aux=aux))
    config = resolved.loaded.config
    assert (resolved.preset, ks(config)) == (preset, expected)
    assert {branch.kind for branch in config.branches} <= {"cross-ffn" if baseline == "ms-detr" else "lora"}
    # Nothing but the list of branches differs from the preset itself.
    whole = config_of(preset=preset)
    assert config == whole.model_copy(update={"branches": config.branches})
    if aux is None or preset.endswith(f"-lora{aux}"):
        assert config == whole


def test_without_a_baseline_deformable_is_meant() -> None:
    assert resolve(Request(data=DATA)).preset == "deformable"
    assert resolve(Request(data=DATA, aux=3)).preset == "deformable-lora3"


def test_branches_bring_the_losses_of_the_paper_and_none_those_of_the_baseline() -> None:
    assert config_of(baseline="deformable").loss.primary.classification == "focal"
    assert config_of(baseline="deformable", aux=3).loss.primary.classification == "quality"
    assert config_of(baseline="relation").loss.primary.weights.classification == 1.0
    assert config_of(baseline="relation", aux=3).loss.primary.weights.classification == 0.5


@pytest.mark.parametrize(
    "preset", ["deformable-lora3", "deformable-pp-lora3", "relation-lora3", "deformable-ffn3", "ms-detr-tiny"]
)
@pytest.mark.parametrize("aux", [0, 2, 4])
def test_aux_on_a_preset_changes_the_list_of_branches_and_nothing_else(preset: str, aux: int) -> None:
    whole, changed = config_of(preset=preset), config_of(preset=preset, aux=aux)
    assert len(changed.branches) == aux
    assert changed == whole.model_copy(update={"branches": changed.branches})
    listed = [branch.model_copy(update={"matcher": whole.branches[0].matcher}) for branch in changed.branches]
    assert listed == [whole.branches[0]] * aux


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
    assert {branch.rank for branch in config_of(baseline="deformable-pp", aux=2).branches} == {48}


def test_short_names_belong_to_a_kind_of_matcher() -> None:
    """alpha is class_weight of one and a key of another; q is what SimOTA calls k."""
    specs = ("topk:k=6,alpha=0.2", "task-aligned:alpha=0.5", "simota:q=12", "many-to-one:tau=2", "atss:k=9", "simota")
    matchers = [branch.matcher for branch in config_of(baseline="deformable", branches=specs).branches]
    shown = [matcher.describe() for matcher in matchers]
    assert shown == [
        "topk k=6 tau=0.4 alpha=0.2",
        "task-aligned k=13 alpha=0.5 beta=6",
        "simota k=12",
        "many-to-one k=2 alpha=0.25 tau=2",
        "atss k=9",
        "simota k=10",
    ]
    with pytest.raises(ConfigError, match=r"`branches\.0\.matcher\.tau`: unknown key"):
        config_of(baseline="deformable", branches=("atss:tau=0.4",))


def test_branch_specifications_in_the_words_of_the_paper() -> None:
    config = config_of(baseline="deformable", branches=("topk:k=6,tau=0.5,alpha=0.2", "lora/topk:k=3"))
    first, second = (branch.matcher for branch in config.branches)
    assert (first.k, first.threshold, first.class_weight) == (6, 0.5, 0.2)
    assert (second.k, second.threshold) == (3, 0.4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lorra/topk:k=3", "did you mean 'lora'?"),
        ("ffm/topk:k=3", "did you mean 'ffn'?"),
        ("cross/topk:k=3", "did you mean 'cross-ffn'?"),
        ("ffn/topk:kk=3", "branches.0.matcher.kk"),
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
        ({"branch_kind": "ffn", "branches": ("topk:k=6",)}, "--branch-kind and --branch exclude each other"),
        ({"branch_kind": "frn", "aux": 1}, "--branch-kind frn: unknown kind 'frn'; did you mean 'ffn'?"),
        ({"branch_kind": "ffn"}, "--branch-kind ffn: there are no branches"),
        ({"baseline": "deformable", "aux": 3, "branch_kind": "ffn", "rank": 8}, "--rank 8: ffn branches have no rank"),
        ({"preset": "deformable-ffn3", "rank": 8}, "--rank 8: ffn branches have no rank"),
        ({"branches": ("topk:k=6", "ffn/topk:k=3"), "rank": 8}, "--rank 8: ffn branches have no rank"),
        ({"baseline": "ms-detr", "rank": 8}, "--rank 8: cross-ffn branches have no rank"),
        ({"baseline": "relation", "rank": 8}, "--rank 8: there are no branches"),
        ({"hybrid": -1}, "--hybrid -1: expected 0 or more"),
        ({"baseline": "relatoin"}, "did you mean 'relation'?"),
        ({"baseline": "msdetr"}, "did you mean 'ms-detr'?"),
        ({"baseline": "deformabel"}, "did you mean 'deformable'?"),
        ({"preset": "deformable-lora33"}, "unknown preset 'deformable-lora33'; did you mean 'deformable-lora3'?"),
        ({"baseline": "deformabel", "preset": "deformable-lora3"}, "did you mean 'deformable'?"),
        ({"overrides": ("train.optimizer.lrr=1",)}, "did you mean"),
        ({"named": {"train.precision": "fp8"}}, "train.precision"),
    ],
)
def test_wrong_options(options: dict[str, object], part: str) -> None:
    assert part in refused(**options).message


@pytest.mark.parametrize(
    ("baseline", "preset", "system"),
    [
        ("relation", "deformable", "deformable"),
        ("relation", "deformable-lora3", "deformable"),
        ("deformable", "relation-tiny", "relation"),
        ("deformable", "deformable-pp", "deformable-pp"),
        ("deformable-pp", "deformable", "deformable"),
        ("ms-detr", "deformable-ffn3", "deformable"),
        ("deformable", "ms-detr-pp", "ms-detr"),
        ("deformable-pp", "ms-detr-pp", "ms-detr"),
    ],
)
def test_a_baseline_that_contradicts_the_preset_is_an_error(baseline: str, preset: str, system: str) -> None:
    error = refused(baseline=baseline, preset=preset)
    assert error.message == f"--baseline {baseline} contradicts --preset {preset}, which is a '{system}'"


@pytest.mark.parametrize(
    ("baseline", "preset"),
    [
        ("deformable", "deformable-lora3"),
        ("deformable-pp", "deformable-pp-lora3"),
        ("relation", "relation-swin-l-lora3"),
        ("ms-detr", "ms-detr-pp"),
    ],
)
def test_a_baseline_beside_a_preset_of_its_own_changes_nothing(baseline: str, preset: str) -> None:
    assert config_of(baseline=baseline, preset=preset) == config_of(preset=preset)


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
            ({"baseline": "deformable", "aux": 3, "branch_kind": "ffn"}, "deformable-tiny-ffn3", [6, 2, 4]),
            ({"baseline": "deformable", "aux": 1, "branch_kind": "ffn"}, "deformable-tiny-ffn3", [6]),
            ({"baseline": "deformable", "branches": ("ffn/topk:k=3",)}, "deformable-tiny-ffn3", [3]),
            ({"baseline": "deformable-pp"}, "deformable-pp-tiny", []),
            ({"baseline": "deformable-pp", "aux": 2}, "deformable-pp-tiny-lora3", [6, 3]),
            ({"baseline": "relation"}, "relation-tiny", []),
            ({"baseline": "relation", "aux": 1}, "relation-tiny-lora3", [6]),
            ({"baseline": "relation", "aux": 3}, "relation-tiny-lora3", [2, 4, 6]),
            ({"baseline": "ms-detr"}, "ms-detr-tiny", [6]),
            ({"baseline": "ms-detr", "aux": 2}, "ms-detr-tiny", [6, 3]),
            ({"hybrid": 6, "dac": True}, "deformable-tiny", []),
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

    @pytest.mark.parametrize("override", ["data.path=elsewhere", "data={path: elsewhere}"])
    def test_data_that_a_setting_names_is_used(self, override: str) -> None:
        resolved = self.resolved(baseline="deformable", overrides=(override,))
        assert (resolved.preset, resolved.data, resolved.notes) == ("deformable", Path("elsewhere").resolve(), ())
        assert resolved.loaded.config.data.path == str(Path("elsewhere").resolve())

    @pytest.mark.parametrize("options", [{"aux": 3}, {"preset": "deformable-tiny", "branches": ("topk:k=6",)}])
    def test_settings_load_twice_once_for_the_checks(
        self, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads: list[object] = []
        monkeypatch.setattr(module, "load_config", lambda *args, **kw: (loads.append(kw), load_config(*args, **kw))[1])
        self.resolved(**options)
        assert len(loads) == 2

    def test_a_file_of_settings_that_names_no_data_leaves_the_choice(self, tmp_path: Path) -> None:
        (tmp_path / "more.yaml").write_text("train: {epochs: 3}\n")
        resolved = self.resolved(preset="deformable-tiny", files=(tmp_path / "more.yaml",))
        assert resolved.data == tmp_path / "generated" / "shapes"
