"""Parts that are held still stay still, and names that fit nothing are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lora_detr.errors import ConfigError
from lora_detr.tensor_files import read_tensors
from lora_detr.training.freezing import freeze, train_unfrozen
from tests import small_runs
from tests.small_runs import Lines


def model() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    return nn.ModuleDict({"body": inner, "body2": nn.Sequential(nn.BatchNorm1d(2)), "head": nn.Linear(2, 1)})


def test_only_what_is_named_is_frozen() -> None:
    parts = model()
    freeze(parts, ("body", "head.bias"))
    still = {name for name, parameter in parts.named_parameters() if not parameter.requires_grad}
    assert still == {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.bias"}


def test_frozen_normalisation_keeps_its_statistics_and_dropout_stays_on() -> None:
    parts = model()
    train_unfrozen(parts, ("body",))
    modes = {name: module.training for name, module in parts.named_modules()}
    assert modes["body.1"] is False
    assert (modes["body2.0"], modes["body.2"], modes["head"]) == (True, True, True)


@pytest.mark.parametrize(
    ("prefix", "hint"), [("detector.bakbone", "detector.backbone"), ("detector.back", "detector.backbone"), ("x", "")]
)
def test_a_prefix_that_fits_nothing_is_refused(prefix: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(small_runs.config().build_model(3, load_weights=False), (prefix,))
    assert caught.value.exit_code == 2
    assert prefix in caught.value.message
    assert hint in caught.value.message


def test_a_run_with_a_frozen_backbone_trains_the_rest(shapes_tiny: Path, tmp_path: Path) -> None:
    shown = Lines()
    overrides = ('train.freeze=["detector.backbone"]', "train.max_steps=2")
    directory = small_runs.train(shapes_tiny, tmp_path / "run", *overrides, display=shown).directory
    assert "frozen      detector.backbone" in shown.lines
    trained = read_tensors(directory / "checkpoints" / "step-00000002" / "model.safetensors")[0]
    start = small_runs.stepper(small_runs.config(*overrides), 10).model.state_dict()
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    assert moved
    assert not [name for name in moved if name.startswith("detector.backbone.")]
