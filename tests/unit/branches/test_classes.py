"""Class layers of the branches: the primary's, the primary's without training it, or their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.opened import OpenedRun, open_model
from lora_detr.checkpoints.stripped_file import read_stripped
from lora_detr.deploy.strip import strip
from lora_detr.models import TwoStageDetector
from lora_detr.structures import BranchOutput, ClassLayer, DetectorOutput, Images
from lora_detr.training.seeding import seed_everything
from tests import small_runs

KINDS: tuple[ClassLayer, ...] = ("shared", "detached", "own", "each")
COPIES = {"shared": 0, "detached": 0, "own": 1, "each": 3}


def built(kind: ClassLayer) -> BranchedDetector[TwoStageDetector]:
    seed_everything(0)
    return small_runs.config(f"loss.branch.class_layer={kind}").build_model(4, load_weights=False).eval()


def images(side: int) -> Images:
    padding = torch.zeros(1, side, side, dtype=torch.bool)
    return Images(torch.rand(1, 3, side, side), padding, torch.tensor([[side, side]]))


def answers(model: BranchedDetector[TwoStageDetector]) -> tuple[DetectorOutput, BranchOutput]:
    seed_everything(1)
    output, branches = model(images(96))
    assert branches is not None
    return output, branches


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_from_the_same_answers(kind: ClassLayer) -> None:
    expected, found = answers(built("shared"))[1], answers(built(kind))[1]
    for one, other in zip(expected.layers, found.layers, strict=True):
        torch.testing.assert_close(other.logits, one.logits)
        assert torch.equal(other.boxes, one.boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_branches_train_the_class_layer_they_use(kind: ClassLayer) -> None:
    model = built(kind)
    _, branches = answers(model)
    torch.stack([layer.logits.sum() for layer in branches.layers]).sum().backward()
    for layer in range(2):
        trains = model.detector.class_layer(layer).weight.grad is not None
        assert trains == (kind == "shared")
    own = [p for name, p in model.named_parameters() if name.startswith("branches.classes.")]
    assert len(own) == 2 * 2 * COPIES[kind]  # layers x (weight, bias) x copies
    assert all(p.grad is not None and p.grad.any() for p in own)
    # What lies before the class layer is trained in any case.
    assert model.detector.ffn(0).linear1.weight.grad is not None


def test_each_branch_has_the_layer_of_its_place() -> None:
    model = built("each")
    assert model.branches.classes is not None
    with torch.no_grad():
        for branch in range(3):
            layer = model.branches.classes.of(branch, 1)
            assert layer is not None
            layer.weight.zero_()
            layer.bias.fill_(float(branch))
    logits = answers(model)[1].layers[1].logits
    assert [logits[branch].unique().tolist() for branch in range(3)] == [[0.0], [1.0], [2.0]]


@pytest.fixture(scope="module")
def own_run(learned_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an epoch whose branches have one class layer."""
    folder = tmp_path_factory.mktemp("own") / "run"
    small_runs.train(learned_data, folder, "loss.branch.class_layer=own", "train.epochs=1")
    return folder


def test_strip_drops_them_and_a_branch_takes_its_own_along(own_run: Path, tmp_path: Path) -> None:
    opened = open_model(own_run, "best")
    assert isinstance(opened, OpenedRun)
    layer = opened.model.branches.classes.of(0, 1)
    assert layer is not None and not torch.equal(layer.weight, opened.model.detector.class_layer(1).weight)
    for branch, expected in ((None, opened.model.detector.class_layer(1)), (0, layer)):
        path = tmp_path / f"{branch}.safetensors"
        strip(opened, path, [images(96)], "a made-up image", branch)  # which proves that answers are the same
        found = read_stripped(path).detector
        assert torch.equal(found.class_layer(1).weight, expected.weight)
        assert not [name for name in found.state_dict() if "branches" in name]


def test_weights_of_another_run_start_them_as_copies(own_run: Path, learned_data: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    small_runs.train(learned_data, plain, "train.epochs=1")
    further = tmp_path / "further"
    small_runs.train(
        learned_data,
        further,
        "loss.branch.class_layer=each",
        f"weights={plain}",
        "train.epochs=1",
        "train.optimizer.lr=1e-12",
    )
    opened = open_model(further, "best")
    assert isinstance(opened, OpenedRun) and opened.model.branches.classes is not None
    for branch in range(3):
        own = opened.model.branches.classes.of(branch, 0)
        assert own is not None
        torch.testing.assert_close(own.weight, opened.model.detector.class_layer(0).weight, rtol=0, atol=1e-6)
