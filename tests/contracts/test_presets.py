"""Every preset can be loaded and built, says what it is for, and has rules that apply to something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_detr.config.dump import as_tree, dump_aligned, dump_config
from lora_detr.config.load import load_config
from lora_detr.config.presets import PresetInfo, list_presets, short_name
from lora_detr.config.source import composition, find_source, load_source
from lora_detr.config.tree import flatten
from lora_detr.losses.normaliser import Normaliser
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Images, PaddedTargets, Target
from lora_detr.training.optim import build_optimizer, group_parameters, rate_factor

PRESETS = list_presets()
per_preset = pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])

# A step at full size is too slow for a test; what a preset switches on is kept.
REDUCED: dict[str, Any] = {"num_queries": 20, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 64, "hidden_dim": 32}


def load(preset: PresetInfo) -> RunConfig:
    return load_config(RunConfig, preset=preset.name).config


def test_there_are_presets() -> None:
    assert {"deformable", "lora_detr/deformable-lora3"} <= {preset.name for preset in PRESETS}


@per_preset
def test_header_and_command(preset: PresetInfo) -> None:
    assert preset.description
    assert "loradetr train" in preset.description
    assert preset.path.read_text(encoding="utf-8").endswith("\n")


@per_preset
def test_validates_by_name_and_by_stem(preset: PresetInfo) -> None:
    config = load(preset)
    assert load_config(RunConfig, preset=preset.path.stem).config == config
    assert config.train.schedule.drop_epochs or config.train.schedule.drop_fractions
    assert all(drop < config.train.epochs for drop in config.train.schedule.drop_epochs)


@per_preset
def test_what_the_list_shows_of_it(preset: PresetInfo) -> None:
    assert preset.title
    assert load_source(RunConfig, find_source(short_name(preset, PRESETS))).config == load(preset)
    # A published figure stands where the list finds it, and says that it is one.
    assert preset.paper or "(published)" not in preset.description
    assert all("(published)" in text for text in preset.paper if " AP" in text)


@per_preset
def test_its_file_is_valid_and_is_made_of_differences(preset: PresetInfo) -> None:
    for name in (preset.name, str(preset.path)):
        source = find_source(name)
        assert load_source(RunConfig, source).config == load(preset)
        base, _, count = composition(source).removesuffix("settings").rpartition(" + ")
        assert base == "schema defaults" or base.removeprefix("preset ") in {other.path.stem for other in PRESETS}
        assert 0 < int(count) < sum(1 for _ in flatten(as_tree(load(preset)))) / 2


@per_preset
def test_what_is_written_reads_back_as_preset_and_as_file(preset: PresetInfo, tmp_path: Path) -> None:
    loaded = load_config(RunConfig, preset=preset.name)
    texts = {
        "plain": dump_config(loaded.config),
        "commented": dump_config(loaded.config, loaded.origin),
        "aligned": dump_aligned(as_tree(loaded.config), loaded.origin),
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_config(RunConfig, preset=path).config == loaded.config
        # Laid over another preset, a complete file leaves nothing of it.
        assert load_config(RunConfig, preset="deformable-tiny-lora3", files=[path]).config == loaded.config


@per_preset
def test_every_rule_of_the_optimizer_matches(preset: PresetInfo) -> None:
    config = load(preset)
    with torch.device("meta"):
        model = config.build_model(91, load_weights=False)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = group_parameters(trained, config.train.optimizer)
    assert sorted(name for group in groups for name in group.names) == sorted(trained)
    assert len(groups) > 1
    heads = {group.scale for group in groups if any("heads.boxes" in name for name in group.names)}
    backbone = {group.scale for group in groups if any(".backbone." in name for name in group.names)}
    assert backbone == {0.5 if preset.path.parent.name == "tiny" else 0.1}
    assert len(heads) == 1


@per_preset
def test_one_step_at_reduced_size(preset: PresetInfo) -> None:
    config = load(preset)
    backbone = {"kind": "timm", "name": "test_efficientnet", "strides": (16, 32), "weights": "none"}
    settings = config.model.model_dump() | REDUCED | {"backbone": backbone}
    config = config.model_copy(update={"model": type(config.model).model_validate(settings)})
    config = RunConfig.model_validate(config.model_dump())
    model, criterion = config.build_model(4, load_weights=False), config.build_criterion()
    optimizer = build_optimizer(model, config.train.optimizer)
    pixels = torch.randn(2, 3, 64, 64)
    images = Images(pixels, torch.zeros(2, 64, 64).bool(), torch.full((2, 2), 64))
    targets = [Target(torch.tensor([[0.5, 0.5, 0.4, 0.3]]), torch.tensor([i]), i, (64, 64)) for i in range(2)]
    output, branches = model(images, targets)
    report = criterion(output, branches, PaddedTargets.from_targets(targets), Normaliser(2.0))
    report.total.backward()
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing
    optimizer.step()
    moved = [name for name, value in model.named_parameters() if name in before and not value.equal(before[name])]
    # The rest are biases without decay behind heads that answer zero at the start, so that no gradient reaches them.
    assert len(moved) > 0.8 * len(before)
    sources = {term.key.source for term in report.terms()}
    assert sources >= {"primary", *config.branch_names}


@per_preset
def test_rates_fall_over_the_schedule(preset: PresetInfo) -> None:
    config = load(preset)
    factor = rate_factor(config.train.schedule, 100, config.train.epochs * 100)
    rates = [factor(step) for step in range(config.train.epochs * 100)]
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1)
