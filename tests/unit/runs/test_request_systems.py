"""What options of a system's own make of it: kinds of branches, their start, and groups of further queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_detr.branches import LoRAConfig
from lora_detr.models.query_groups import HybridConfig
from lora_detr.recipe.branch_counts import baselines
from lora_detr.runs.request import Request, resolve
from tests.unit.runs.test_request import DATA, config_of, ks


@pytest.mark.parametrize(
    ("baseline", "aux", "preset", "expected"),
    [
        ("deformable", 1, "deformable-ffn3", [6]),
        ("deformable", 2, "deformable-ffn3", [6, 3]),
        ("deformable", 3, "deformable-ffn3", [6, 2, 4]),
        ("deformable", 5, "deformable-ffn3", [6, 5, 4, 3, 2]),
        ("deformable-pp", 3, "deformable-pp-lora3", [6, 2, 4]),
        ("relation", 3, "relation-lora3", [2, 4, 6]),
        ("ms-detr", 3, "ms-detr", [6, 2, 4]),
    ],
)
def test_branches_with_networks_of_their_own(baseline: str, aux: int, preset: str, expected: list[int]) -> None:
    """Architecture (c), on any baseline."""
    resolved = resolve(Request(data=DATA, baseline=baseline, aux=aux, branch_kind="ffn"))
    config = resolved.loaded.config
    assert (resolved.preset, ks(config)) == (preset, expected)
    assert {branch.kind for branch in config.branches} == {"ffn"}
    assert config == config_of(preset=preset).model_copy(update={"branches": config.branches})


@pytest.mark.parametrize(
    ("options", "kinds", "expected"),
    [
        ({"baseline": "deformable", "aux": 3, "branch_kind": "cross-ffn"}, {"cross-ffn"}, [6, 2, 4]),
        ({"baseline": "deformable", "aux": 3, "branch_kind": "lora"}, {"lora"}, [6, 4, 2]),
        ({"baseline": "ms-detr", "aux": 3, "branch_kind": "lora"}, {"lora"}, [6, 4, 2]),
        ({"baseline": "ms-detr", "branch_kind": "ffn"}, {"ffn"}, [6]),
        ({"preset": "deformable-lora3", "branch_kind": "ffn"}, {"ffn"}, [6, 4, 2]),
        ({"preset": "relation-lora3", "branch_kind": "cross-ffn"}, {"cross-ffn"}, [2, 4, 6]),
        ({"preset": "deformable-lora3", "branch_kind": "ffn", "aux": 2}, {"ffn"}, [6, 3]),
        ({"preset": "relation", "branch_kind": "cross-ffn", "aux": 1}, {"cross-ffn"}, [6]),
        ({"preset": "deformable-ffn3", "aux": 5}, {"ffn"}, [6, 5, 4, 3, 2]),
        ({"preset": "deformable-ffn3", "branch_kind": "ffn"}, {"ffn"}, [6, 2, 4]),
        ({"baseline": "deformable", "aux": 0, "branch_kind": "ffn"}, set(), []),
    ],
)
def test_the_kind_of_branches_can_be_chosen(options: dict[str, object], kinds: set[str], expected: list[int]) -> None:
    config = config_of(**options)
    assert {branch.kind for branch in config.branches} == kinds
    assert ks(config) == expected


def test_a_change_of_kind_keeps_the_matchers() -> None:
    config = config_of(preset="deformable-lora3", branch_kind="ffn", overrides=("branches.1.matcher.threshold=0.7",))
    assert [(branch.matcher.k, branch.matcher.threshold) for branch in config.branches] == [
        (6, 0.4),
        (4, 0.7),
        (2, 0.4),
    ]


@pytest.mark.parametrize(
    ("options", "preset"),
    [
        ({"branches": ("topk:k=5", "topk:k=3")}, "deformable-lora3"),
        ({"branches": ("topk:k=5",)}, "deformable-lora1"),
        ({"branches": ("topk:k=5", "ffn/topk:k=3")}, "deformable-lora3"),
        ({"branches": ("ffn/topk:k=5", "topk:k=3")}, "deformable-ffn3"),
        ({"baseline": "relation", "branches": ("topk:k=5", "cross-ffn/topk:k=3")}, "relation-lora3"),
    ],
)
def test_listed_branches_choose_the_preset_by_their_number_and_the_first_kind(
    options: dict[str, Any], preset: str
) -> None:
    resolved = resolve(Request(data=DATA, **options))
    assert resolved.preset == preset
    found = [(branch.kind, branch.matcher.k) for branch in resolved.loaded.config.branches]
    wanted = [text.rpartition("/") for text in options["branches"]]
    assert found == [(kind or "lora", int(matcher[-1])) for kind, _, matcher in wanted]


def initialisations(**options: object) -> list[str]:
    return [branch.initialisation for branch in config_of(**options).branches if isinstance(branch, LoRAConfig)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"baseline": "deformable", "aux": 3}, ["xavier"] * 3),
        ({"baseline": "deformable-pp", "branches": ("topk:k=6",)}, ["xavier"]),
        ({"baseline": "ms-detr", "aux": 2, "branch_kind": "lora"}, ["xavier"] * 2),
        ({"baseline": "relation", "aux": 3}, ["zero-b"] * 3),
        ({"preset": "relation", "aux": 2}, ["zero-b"] * 2),
        ({"preset": "relation-lora3", "aux": 5}, ["zero-b"] * 5),
        ({"preset": "relation-lora3", "branch_kind": "lora"}, ["zero-b"] * 3),
        ({"baseline": "relation", "branches": ("topk:k=6", "ffn/topk:k=3")}, ["zero-b"]),
        ({"preset": "relation", "branches": ("topk:k=6",)}, ["zero-b"]),
        ({"preset": "relation-lora3", "aux": 2, "overrides": ("branches.0.initialisation=xavier",)}, ["xavier"] * 2),
    ],
)
def test_lora_starts_as_its_family_does(options: dict[str, object], expected: list[str]) -> None:
    assert initialisations(**options) == expected


class TestQueryGroups:
    """``--hybrid K`` and ``--dac``, on any baseline."""

    @pytest.mark.parametrize("baseline", baselines())
    @pytest.mark.parametrize("copies", [4, 6])
    def test_hybrid_queries(self, baseline: str, copies: int) -> None:
        plain, config = config_of(baseline=baseline), config_of(baseline=baseline, hybrid=copies)
        assert config.loss.hybrid.repeats == copies
        assert config.model.hybrid == HybridConfig()
        weights = config.loss.hybrid.weights
        assert (weights.classification, weights.l1, weights.giou) == (1.0, 5.0, 2.0)
        assert config.branches == plain.branches
        assert config.loss.primary == plain.loss.primary

    def test_relation_keeps_its_number_of_queries(self) -> None:
        config = config_of(preset="relation-tiny", hybrid=4)
        assert config.model.hybrid == HybridConfig(num_queries=200)
        assert config.loss.hybrid.repeats == 4
        chosen = config_of(baseline="deformable", hybrid=6, overrides=("model.hybrid.num_queries=300",))
        assert chosen.model.hybrid == HybridConfig(num_queries=300)

    def test_none_leaves_them_out(self) -> None:
        whole, config = config_of(baseline="relation"), config_of(baseline="relation", hybrid=0)
        assert whole.model.hybrid is not None
        assert config == whole.model_copy(update={"model": whole.model.model_copy(update={"hybrid": None})})
        assert config_of(baseline="deformable", hybrid=0) == config_of(baseline="deformable")

    @pytest.mark.parametrize("baseline", baselines())
    def test_dac(self, baseline: str) -> None:
        config = config_of(baseline=baseline, dac=True)
        assert config.model.dac
        matcher = config.loss.dac.matcher
        assert (matcher.k, matcher.threshold) == (6, 0.4)
        weights = config.loss.dac.weights
        assert (weights.classification, weights.l1, weights.giou) == (2.0, 5.0, 2.0)
        assert config.loss.primary.weights.classification == 1.0

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"preset": "deformable-tiny"}, 1.0),
            ({"preset": "deformable-ffn3"}, 1.0),
            ({"preset": "deformable-tiny-lora3"}, 4.0),  # not the focal loss, so another scale
            ({"preset": "relation-lora3"}, 0.5),
            ({"overrides": ("loss.primary.weights.classification=3.0",)}, 3.0),
            ({"overrides": ("loss.primary.weights.classification=2.0",)}, 2.0),  # the preset's own, but chosen
            ({"overrides": ("loss.primary.weights={classification: 3.0}",)}, 3.0),
            ({"overrides": ("loss.primary.weights.l1=4.0",)}, 1.0),
            ({"preset": "deformable-lora3", "overrides": ("loss.primary.classification=focal",)}, 1.0),
        ],
    )
    def test_dac_brings_the_weight_of_ms_detr_unless_another_was_chosen(
        self, options: dict[str, object], expected: float
    ) -> None:
        assert config_of(dac=True, **options).loss.primary.weights.classification == expected

    def test_a_weight_chosen_in_a_file_stays(self, tmp_path: Path) -> None:
        (tmp_path / "more.yaml").write_text("loss: {primary: {weights: {classification: 2.5}}}\n")
        config = config_of(baseline="deformable", dac=True, files=(tmp_path / "more.yaml",))
        assert config.loss.primary.weights.classification == 2.5

    def test_both_and_branches_together(self) -> None:
        config = config_of(baseline="deformable", aux=3, hybrid=6, dac=True)
        assert (len(config.branches), config.model.hybrid is not None, config.model.dac) == (3, True, True)
