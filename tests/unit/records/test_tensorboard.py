"""Tests of the TensorBoard log: what is read back, what a resumed run hides, what is said without the package."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_detr.errors import ConfigError, OutputError
from lora_detr.json_value import JSON
from lora_detr.losses.report import LossKey, LossTerm
from lora_detr.records.tensorboard import TensorBoardLog
from lora_detr.training.run_log import step_record
from lora_detr.training.step import StepResult

TERMS = (
    LossTerm(LossKey("primary", 0, "class"), 0.5, 2.0),
    LossTerm(LossKey("primary", 1, "giou"), 0.25, 2.0),
    LossTerm(LossKey("branch0", 1, "l1"), 0.125, 5.0),
    LossTerm(LossKey("encoder", None, "class"), 0.75, 2.0),
)


@pytest.fixture
def accumulator() -> Any:
    """Return TensorBoard's reader of event files."""
    reason = "the package tensorboard is not installed"
    name = "tensorboard.backend.event_processing.event_accumulator"
    return pytest.importorskip(name, reason=reason).EventAccumulator


def record(step: int, loss: float = 3.0) -> dict[str, JSON]:
    return step_record(step, 0, StepResult(loss, TERMS, 1.5, False, 0.25), [1e-3, 1e-4])


def scalars(accumulator: Any, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value) of all event files of a folder."""
    found = accumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_every_number_of_a_record_can_be_read_back(accumulator: Any, tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "events")
    log.step(record(1))
    log.epoch(1, {"AP": 0.5, "APs": -1.0})
    log.close()
    assert scalars(accumulator, tmp_path / "events") == {
        "train/loss": [(1, 3.0)],
        "train/gradient_norm": [(1, 1.5)],
        "train/seconds": [(1, 0.25)],
        "lr/group0": [(1, pytest.approx(1e-3))],
        "lr/group1": [(1, pytest.approx(1e-4))],
        "primary/class/layer0": [(1, 0.5)],
        "primary/giou/layer1": [(1, 0.25)],
        "branch0/l1/layer1": [(1, 0.125)],
        "encoder/class": [(1, 0.75)],
        "val/AP": [(1, 0.5)],
    }


def test_an_epoch_is_shown_before_the_log_is_closed(accumulator: Any, tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.step(record(1, loss=math.inf))
    log.epoch(1, {})
    assert scalars(accumulator, tmp_path)["train/loss"] == [(1, math.inf)]
    log.close()
    log.close()


def test_a_resumed_run_hides_what_it_repeats(accumulator: Any, tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.step(record(step, loss=1.0))
    log.close()
    # Files are read by rising name, and two of one second differ only by a counter that is no part of this test.
    (written,) = tmp_path.iterdir()
    written.rename(tmp_path / "events.out.tfevents.0000000001.first")
    log = TensorBoardLog(tmp_path, resumed_at=2)
    log.step(record(3, loss=2.0))
    log.close()
    assert scalars(accumulator, tmp_path)["train/loss"] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_folder_that_cannot_be_made_is_an_output_error(accumulator: Any, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="events: cannot be written"):
        TensorBoardLog(tmp_path / "events")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError) as caught:
        TensorBoardLog(tmp_path / "events")
    assert caught.value.message == "--tensorboard: the package tensorboard is not installed"
    assert caught.value.remedy == 'pip install "lora-detr[log]"'
    assert not (tmp_path / "events").exists()
