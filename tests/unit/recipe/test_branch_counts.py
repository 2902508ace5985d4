"""What is derived from unions and presets is all there is."""

from __future__ import annotations

from lora_detr.config.presets import list_presets
from lora_detr.recipe.branch_counts import BRANCH_KINDS, DEFAULT_BASELINE, baselines


def test_systems_are_those_with_a_tiny_preset() -> None:
    assert baselines() == ("deformable", "deformable-pp", "ms-detr", "relation")
    assert DEFAULT_BASELINE in baselines()
    stems = [preset.path.stem for preset in list_presets()]
    assert {f"{name}{tiny}" for name in baselines() for tiny in ("", "-tiny")} <= set(stems)


def test_kinds_are_the_members_of_the_union() -> None:
    assert BRANCH_KINDS == ("lora", "ffn", "cross-ffn")
