"""The running average of weights: its arithmetic, and that it is what a run evaluates, saves, resumes and deploys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.deploy.strip import strip
from lora_detr.errors import CheckpointError
from lora_detr.evaluation.predictor import open_predictor
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from lora_detr.runs.evaluate import PRIMARY, evaluate_parts
from lora_detr.structures import Images
from lora_detr.tensor_files import read_tensors
from lora_detr.training.averaging import WeightAverage
from lora_detr.training.trainer import Trainer
from tests import small_runs
from tests.small_runs import Lines

EMA = ("train.ema_decay=0.9", "train.max_steps=8")


@pytest.fixture(scope="module")
def averaged_run(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with averaged weights. Shared: do not write into it."""
    return small_runs.train(shapes_tiny, tmp_path_factory.mktemp("ema") / "run", *EMA).directory


def part(directory: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(directory / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")[0]


def test_the_average_follows_its_formula() -> None:
    model = small_runs.config().build_model(3, load_weights=False)
    average = WeightAverage(model, 0.5)
    name, weight = next(iter(model.named_parameters()))
    expected = weight.detach().clone()
    for n in range(6):
        with torch.no_grad():
            weight.add_(1.0)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert average.updates == 6
    torch.testing.assert_close(dict(average.model.named_parameters())[name].detach(), expected)
    assert not torch.equal(expected, weight)


def test_what_is_trained_and_its_average_share_nothing() -> None:
    model = small_runs.config().build_model(3, load_weights=False)
    average = WeightAverage(model, 0.9)
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    assert not [name for name, parameter in average.model.named_parameters() if parameter.data_ptr() in ours]
    # The kernels of attention depend on it in their last bits, so an average must predict like a model that was loaded.
    assert [p.requires_grad for p in average.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_checkpoint_holds_both_and_the_average_is_what_is_used(averaged_run: Path) -> None:
    raw, average = part(averaged_run, 8, "model"), part(averaged_run, 8, "ema")
    assert raw.keys() == average.keys()
    differing = [name for name in raw if not torch.equal(raw[name], average[name])]
    assert any(name.startswith("detector.heads") for name in differing)
    for ema, expected in ((True, average), (False, raw)):
        opened = open_run(averaged_run, "last", ema=ema)
        assert opened.averaged is ema
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.model.state_dict().items())


def test_a_run_reports_the_average_and_eval_repeats_it(averaged_run: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    stored = json.loads((averaged_run / "eval" / "metrics.json").read_text())
    again = evaluate_parts(averaged_run, say=lines.append, which="last", workers=0)[PRIMARY]
    assert {"checkpoint": "step-00000008", **again.to_json()} == stored
    evaluate_parts(averaged_run, say=lines.append, which="last", workers=0, predictions=tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (averaged_run / "eval" / "predictions.json").read_text()
    assert lines == ["step-00000008, averaged weights: 6 images of instances_val.json"] * 2
    evaluate_parts(
        averaged_run, say=lines.append, which="last", workers=0, ema=False, predictions=tmp_path / "raw.json"
    )
    assert lines[2].startswith("step-00000008: ")
    assert (tmp_path / "raw.json").read_text() != (averaged_run / "eval" / "predictions.json").read_text()
    # Raw weights are not what the run reports, so its folder stays as it was.
    assert json.loads((averaged_run / "eval" / "metrics.json").read_text()) == stored


def test_the_average_does_not_change_what_is_trained(averaged_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    plain = small_runs.train(shapes_tiny, tmp_path / "plain", "train.max_steps=8").directory
    assert not (plain / "checkpoints" / "step-00000008" / "ema.safetensors").exists()
    raw, other = part(averaged_run, 8, "model"), part(plain, 8, "model")
    assert all(torch.equal(raw[name], other[name]) for name in raw)


def test_a_resumed_average_equals_an_uninterrupted_one_r2(
    averaged_run: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    directory = small_runs.train(shapes_tiny, tmp_path / "run", EMA[0], "train.max_steps=5").directory
    run.resume(directory, {"train.max_steps": 8}, Lines())
    for name in ("model", "ema", "optim"):
        found, expected = part(directory, 8, name), part(averaged_run, 8, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_a_checkpoint_without_the_average_is_not_resumed_as_one_with_it(averaged_run: Path, own_run: Path) -> None:
    # Not reachable through the command line, which refuses to change `train.ema_decay`.
    opened = open_run(own_run, "last", with_optimizer=True)
    settings = small_runs.config("train.ema_decay=0.9")
    data = small_runs.splits_of(Path(opened.config.data.path or ""), settings)
    model = settings.build_model(data.categories.num_classes, load_weights=False)
    trainer = Trainer(settings, data, model, RunDirectory(own_run), small_runs.ALONE, Lines())
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        trainer.restore(opened.checkpoint, opened.path)


def test_predicting_uses_the_average_unless_told_otherwise(averaged_run: Path, shapes_tiny: Path) -> None:
    image = next(iter(sorted((shapes_tiny / "val").glob("*.png"))))
    average, raw = (open_predictor(averaged_run, "last", device="cpu", ema=ema) for ema in (True, False))
    assert not torch.equal(average.predict(image, 0.0).scores, raw.predict(image, 0.0).scores)
    weights = part(averaged_run, 8, "ema")
    assert all(torch.equal(t, weights[f"detector.{name}"]) for name, t in average.detector.state_dict().items())


@pytest.mark.parametrize("ema", [True, False])
def test_strip_says_which_weights_it_took(ema: bool, averaged_run: Path, tmp_path: Path) -> None:
    images = [Images(torch.rand(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool), torch.tensor([[64, 96]]))]
    opened = open_run(averaged_run, "last", ema=ema)
    report = strip(opened, tmp_path / "stripped.safetensors", images, "noise")
    assert report.averaged is ema
    written, _ = read_tensors(tmp_path / "stripped.safetensors")
    expected = part(averaged_run, 8, "ema" if ema else "model")
    assert all(torch.equal(tensor, expected[f"detector.{name}"]) for name, tensor in written.items())
