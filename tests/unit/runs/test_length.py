"""A run whose length nobody chose has enough steps, with the preset's schedule at the same shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.config.load import Loaded, load_config
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import run
from lora_detr.runs.length import MIN_STEPS, has_default_length, lengthened, with_length_of
from tests import small_runs


def loaded(*overrides: str, preset: str = "deformable-tiny-lora3") -> Loaded[RunConfig]:
    return load_config(RunConfig, preset=preset, overrides=overrides)


def test_twenty_images_get_the_least_number_of_steps_and_the_drop_of_the_preset() -> None:
    before = loaded(preset="deformable-lora3")
    assert (before.config.train.epochs, before.config.train.schedule.drop_epochs) == (12, (11,))
    after, note = lengthened(before, 20, 1)
    train = after.config.train
    assert (train.epochs, train.schedule.drop_epochs) == (100, ())
    assert train.schedule.drop_fractions == (pytest.approx(11 / 12),)
    assert after.config.evaluation.every == 8
    assert after.origin["train.epochs"] == "for 20 images"
    assert note == (
        "20 images for training: 100 epochs (1,000 steps) instead of 12, evaluated every 8; --epochs chooses others"
    )


def test_the_global_batch_counts() -> None:
    after, _ = lengthened(loaded("train.batch_size=4", "train.accumulate=2"), 33, 2)  # 16 a step, 2 steps an epoch
    assert after.config.train.epochs * 2 == MIN_STEPS


@pytest.mark.parametrize(
    ("override", "images"), [("train.epochs=2", 20), ("train.max_steps=5", 20), ("train.seed=1", 200)]
)
def test_a_length_that_was_chosen_or_suffices_stays(override: str, images: int) -> None:
    before = loaded(override)
    assert lengthened(before, images, 1) == (before, "")


def test_a_preset_of_the_user_s_own_is_a_choice(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: deformable-tiny\ntrain: {epochs: 2}\n", encoding="utf-8")
    assert not has_default_length(loaded(preset=str(mine)))
    mine.write_text("extends: deformable-tiny\ntrain: {batch_size: 4}\n", encoding="utf-8")
    assert has_default_length(loaded(preset=str(mine)))


def test_a_run_that_is_begun_keeps_its_length() -> None:
    before = loaded()
    begun, _ = lengthened(before, 20, 1)
    assert with_length_of(before, begun.config) == begun.config
    chosen = loaded("train.epochs=7")
    assert with_length_of(chosen, begun.config).train.epochs == 7


def test_the_summary_reports_it(shapes_tiny: Path, tmp_path: Path) -> None:
    lines = small_runs.Lines()
    run.start(small_runs.reduced("deformable-tiny", shapes_tiny), tmp_path / "run", None, dry_run=True, display=lines)
    assert any(" instead of 12, evaluated every " in line for line in lines.lines)
    assert any(line.startswith("schedule    1002 steps (6 per epoch)") for line in lines.lines), lines.lines
