"""Numbers that overflow, and runs that diverge: noticed before anything is updated, and never saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.branches.lora import LoRABranch, lora_feed_forward
from lora_detr.errors import NumericalError
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.structures import DecoderLayerOutput, Prediction
from lora_detr.tensor_files import read_tensors
from lora_detr.training.nonfinite import NonFiniteLossError
from lora_detr.training.trainer import Trainer
from tests import small_runs


def branch_output(precision: torch.dtype) -> Tensor:
    """Return what a branch computes where W1 x is 60,000 and its own term 6,000: fp16 ends at 65,504."""
    width, unread = 8, torch.empty(0)
    ffn, branch = FeedForward(width, width, 0.0), LoRABranch(1, width, width, 1, "xavier")
    layer = branch.layers[0]
    with torch.no_grad():
        ffn.linear1.weight.zero_()
        ffn.linear1.bias.fill_(60_000)
        ffn.linear2.weight.normal_(std=1e-3)
        layer.a1.fill_(1 / width)
        layer.b1.fill_(6_000)
        layer.a2.fill_(1e-3)
    inputs = torch.ones(1, 2, width)
    with torch.autocast("cpu", precision):
        hidden = ffn.linear1(inputs)
        published = DecoderLayerOutput(unread, inputs, hidden, unread, unread, Prediction(unread, unread))
        return lora_feed_forward([branch], 0, ffn, published)


def test_bf16_holds_a_sum_that_fp16_does_not_n13() -> None:
    """The reason why ``train.precision`` offers no fp16."""
    assert not branch_output(torch.float16).isfinite().any()
    assert branch_output(torch.bfloat16).isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_overflow_in_a_branch_is_found_n13(precision: str, shapes_tiny: Path) -> None:
    settings = small_runs.config(*small_runs.WITHOUT_CHANCE, f"train.precision={precision}")
    splits = small_runs.splits_of(shapes_tiny, settings)
    stepper = small_runs.stepper(settings, splits.categories.num_classes)
    with torch.no_grad():
        stepper.model.get_parameter("branches.members.2.layers.1.b1").fill_(3e38)
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="branch2/layer1/class is nan") as caught:
        stepper([small_runs.batch_of(splits, settings, small_runs.with_objects(splits)[:2])], 0)
    assert (caught.value.exit_code, caught.value.code) == (6, "N01")
    assert all(torch.equal(tensor, before[name]) for name, tensor in stepper.model.state_dict().items())


def test_a_huge_rate_ends_the_run_and_saves_no_nan_n14(shapes_tiny: Path, tmp_path: Path) -> None:
    """A checkpoint after each of at most twenty steps: all that were written are finite, moments included."""
    changes = ("train.optimizer.lr=1e6", "train.epochs=4", "train.max_steps=20", "train.save_every=1")
    with pytest.raises(NumericalError) as caught:
        small_runs.train(shapes_tiny, tmp_path / "run", *changes, "train.keep_last=20")
    assert caught.value.exit_code == 6
    ended = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (ended["code"], ended["class"]) == (6, "NonFiniteLossError")
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert 1 <= len(saved) <= ended["step"] < 20
    for path in saved:
        for name in ("model.safetensors", "optim.safetensors"):
            assert all(tensor.isfinite().all() for tensor in read_tensors(path / name, finite=False)[0].values())


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved_n03(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever spoils them behind the last step, the checkpoint before it stays."""
    evaluate = Trainer.evaluate

    def spoiling(self: Trainer) -> object:
        found = evaluate(self)
        if self.step == 4:
            with torch.no_grad():
                self.model.get_parameter("detector.heads.classes.1.bias")[1] = math.inf
        return found

    monkeypatch.setattr(Trainer, "evaluate", spoiling)
    with pytest.raises(NumericalError, match=r"not saved: .*detector\.heads\.classes\.1\.bias") as caught:
        small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=4", "train.save_every=3")
    assert (caught.value.exit_code, caught.value.code) == (6, "N03")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()] == ["step-00000003"]
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["last_checkpoint"] == "step-00000003"
