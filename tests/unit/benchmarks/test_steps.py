"""The systems that are measured, what they are given, and what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
import torch

from benchmarks import steps
from benchmarks.steps import Inputs, Subject, as_leaves, config_of
from lora_detr.errors import ConfigError
from lora_detr.experiments.cost.memory import megabytes_alone
from lora_detr.structures import Prediction
from tests.small_runs import SMALL

INPUTS = Inputs((64, 96), 2, 3)
SYSTEM = str(SMALL)


@pytest.fixture
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make up what processes of their own would say: 100 MB and 10 more for each branch."""

    def made_up(script: str, options: Sequence[str]) -> float:
        assert script == steps.__file__
        assert [*options[:-1]] == [*INPUTS.options(), "--alone"]
        return 100.0 + 10.0 * len(config_of(options[-1]).branches)

    monkeypatch.setattr(steps, "megabytes_alone", made_up)


def test_images_and_objects() -> None:
    batch = INPUTS.draw(4)
    assert batch.images.pixels.shape == (2, 3, 64, 96)
    assert not batch.images.padding.any()
    assert [len(target.labels) for target in batch.targets] == [3, 3]
    assert all(int(target.labels.max()) < 4 for target in batch.targets)
    assert torch.equal(batch.images.pixels, INPUTS.draw(4).images.pixels)


def test_a_system_is_a_preset_with_options() -> None:
    assert len(config_of(f"{SYSTEM} --aux 5").branches) == 5
    assert config_of("deformable-tiny --hybrid 6 --dac").model.hybrid is not None
    assert config_of("deformable-tiny --hybrid 6 --dac").model.dac
    with pytest.raises(ConfigError, match="nonsense"):
        config_of("nonsense")


def test_backbones_are_frozen_as_with_weights_and_have_none() -> None:
    for system in ("deformable", "deformable-tiny"):
        backbone = config_of(system).model.backbone
        assert (backbone.weights, backbone.norm) == ("none", "frozen-batch")
    assert config_of("deformable").model.backbone.freeze_stem


@pytest.mark.usefixtures("_memory")
def test_whole_rows() -> None:
    rows = steps.whole_rows([SYSTEM], SYSTEM, [0, 1, 3], INPUTS, 1)
    whole, pairs = rows[:4], rows[4:]
    assert [row["branches"] for row in whole] == [3, 0, 1, 3]
    assert {row["compared_with"] for row in whole} == {SYSTEM}
    assert whole[0]["step_ratio"] == whole[0]["inference_ratio"] == whole[0]["memory_ratio"] == 1
    assert [row["memory_a_branch_mb"] for row in whole] == [None, None, 10, 10]
    assert whole[1]["memory_ratio"] == pytest.approx(100 / 130)
    parameters = [row["parameters"] for row in whole]
    assert parameters[3] - parameters[1] == 3 * (parameters[2] - parameters[1]) > 0
    assert [(row["branches"], row["compared_with"]) for row in pairs] == [
        (1, f"{SYSTEM} --aux 1"),
        (3, f"{SYSTEM} --aux 1"),
    ]
    assert pairs[0]["step_ratio"] == 1
    assert all(row["step_lowest"] <= row["step_ratio"] <= row["step_highest"] for row in rows)


@pytest.mark.usefixtures("_memory")
def test_without_two_numbers_of_branches_none_is_compared() -> None:
    assert len(steps.whole_rows([SYSTEM], SYSTEM, [0, 2], INPUTS, 1)) == 3


def test_what_comes_after_the_decoder_trains_branches_and_heads_alone() -> None:
    subject = Subject(f"{SYSTEM} --aux 2", INPUTS)
    subject.after_decoder()()
    trained = {name for name, value in subject.model.named_parameters() if value.grad is not None}
    assert all(name in trained for name, _ in subject.model.named_parameters() if name.startswith("branches."))
    assert any(name.startswith("detector.heads.") for name in trained)
    assert not any(name.startswith(("detector.backbone.", "detector.encoder.")) for name in trained)


def test_rows_of_branches_alone() -> None:
    one, two = steps.branch_rows(SYSTEM, [0, 1, 2], INPUTS, 1)
    assert (one["branches"], two["branches"]) == (1, 2)
    assert one["compared_with"] == two["compared_with"] == one["what"] == f"after the decoder, {SYSTEM} --aux 1"


def test_the_stripped_detector_is_the_plain_one() -> None:
    row = steps.stripped_row(SYSTEM, INPUTS, 1)
    assert row["identical"] is True
    assert row["parameters"] == Subject(f"{SYSTEM} --aux 0", INPUTS).parameters
    assert row["step_seconds"] is None
    assert row["inference_ratio"] > 0


def test_a_detector_with_another_weight_is_not_identical() -> None:
    subject = Subject(SYSTEM, INPUTS)
    other = Subject(SYSTEM, INPUTS).model.detector
    subject.model.eval()
    assert steps.are_identical(subject, (other.eval(),))
    with torch.no_grad():
        other.heads.classes[other.num_layers - 1].bias[0] += 1e-6
    assert not steps.are_identical(subject, (other,))


def test_leaves_have_no_history() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    found = as_leaves((Prediction(logits * 2, torch.zeros(1, 2, 4)), torch.ones(2, dtype=torch.int64), None))
    assert found[0].logits.is_leaf and found[0].logits.requires_grad
    assert torch.equal(found[0].logits, logits * 2)
    assert not found[1].requires_grad


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    found = megabytes_alone(steps.__file__, [*Inputs((128, 128), 2, 3).options(), "--alone", SYSTEM])
    assert found is None or found > 5  # the pixels of one layer's maps alone take as much


@pytest.mark.usefixtures("_memory")
def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", SYSTEM, "--branch-preset", SYSTEM, "--branches", "2", "0", "--size", "64", "96"]
    options += ["--batch", "2", "--objects", "3", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["steps.py", *options])
    steps.main()
    content = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in content["rows"]] == [
        SYSTEM,
        f"{SYSTEM} --aux 0",
        f"{SYSTEM} --aux 2",
        f"after the decoder, {SYSTEM} --aux 2",
        f"{SYSTEM} --aux 2, stripped",
    ]
    assert content["options"]["branches"] == [2, 0]
    assert "alone" not in content["options"]
