"""The tiny presets are frozen: figures that were measured on a version stay repeatable by their commands.

A change of a value makes a new version: raise the number in `configs/tiny/deformable-tiny.yaml`, write the new settings
beside the old, and list the change in CHANGELOG under *Numerics*. Settings that are new do not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.config.tree import flatten
from lora_detr.recipe.run_config import RunConfig

VERSION = 1
HERE = Path(__file__).parent
FROZEN: dict[str, dict[str, Any]] = json.loads((HERE / f"tiny_presets_{VERSION}.json").read_text())


def test_every_tiny_preset_is_frozen_and_says_its_version() -> None:
    tiny = {preset.path.stem: preset.path for preset in list_presets() if preset.path.parent.name == "tiny"}
    assert set(tiny) == set(FROZEN)
    assert f"Version {VERSION} of the tiny presets" in tiny["deformable-tiny"].read_text()


@pytest.mark.parametrize("name", FROZEN)
def test_no_value_of_a_frozen_preset_has_changed(name: str) -> None:
    now = dict(flatten(load_config(RunConfig, preset=name).config.model_dump(mode="json")))
    frozen = dict(flatten(FROZEN[name]))
    assert {key: now.get(key) for key in frozen} == frozen
