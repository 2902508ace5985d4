"""``state.json``: its keys, and what is read where they are absent or of another form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_detr.checkpoints.checkpoint import run_of
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.json_value import JSON

# As runs have written it since the first version.
STORED: dict[str, JSON] = {
    "config": {"train": {}},
    "categories": [],
    "data": {"train": "abc"},
    "optimizer": {"groups": [], "scalars": {}},
    "rng": [{}],
    "plan": {"shift": 0},
    "means": {"sums": {}, "count": 0},
    "best": 0.1 + 0.2,
    "best_step": 6,
    "metrics": None,
    "augment": False,
    "overfit": 2,
    "kept": [6, 12],
    "ema_updates": None,
}


def test_what_a_run_writes_is_read_and_written_as_it_is() -> None:
    state = TrainingState.from_json(json.loads(json.dumps(STORED)))
    assert (state.best, state.best_step, state.overfit, state.kept) == (0.1 + 0.2, 6, 2, (6, 12))
    assert json.dumps(state.to_json()) == json.dumps(STORED)


def test_a_converted_checkpoint_holds_settings_labels_and_origin_alone() -> None:
    stored = TrainingState({}, [], official={"names": []}).to_json()
    assert stored == {"config": {}, "categories": [], "official": {"names": []}}
    assert TrainingState.from_json(stored).to_json() == stored


@pytest.mark.parametrize("stored", [{}, {"best": "x", "best_step": 1.5, "kept": 3, "overfit": [], "ema_updates": "x"}])
def test_what_is_absent_or_of_another_form_is_unknown(stored: dict[str, JSON]) -> None:
    assert TrainingState.from_json(stored) == TrainingState()


def test_a_checkpoint_knows_its_run() -> None:
    assert run_of(Path("runs/a/checkpoints/step-00000001")) == Path("runs/a")
    assert run_of(Path("elsewhere/step-00000001")) is None
