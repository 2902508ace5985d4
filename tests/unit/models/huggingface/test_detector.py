"""What the adapter publishes is what the model computed: branches that add nothing predict as the primary path does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from lora_detr.branches import AuxiliaryBranches, BranchedDetector, LoRABranch
from lora_detr.models.huggingface import HuggingFaceDetector
from lora_detr.structures import Detector, Images, Target
from tests import huggingface_models

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conditional": ("conditional_detr", {}),
    "conditional without auxiliary losses": ("conditional_detr", {"auxiliary_loss": False}),
    "dab": ("dab-detr", {}),
    "deformable": ("deformable_detr", {}),
    "deformable of one stage": ("deformable_detr", {"two_stage": False}),
    "deformable without refinement": ("deformable_detr", {"two_stage": False, "with_box_refine": False}),
    "rt-detr": ("rt_detr", {}),
    "rt-detr without denoising": ("rt_detr", {"num_denoising": 0}),
    "rt-detr v2": ("rt_detr_v2", {}),
    "rt-detr v2 without denoising": ("rt_detr_v2", {"num_denoising": 0}),
    "d-fine": ("d_fine", {}),
    "d-fine without denoising": ("d_fine", {"num_denoising": 0}),
    "lw-detr": ("lw_detr", {}),
    "rf-detr": ("rf_detr", {}),
}
REAL_TIME = ("rt_detr", "rt_detr_v2", "d_fine")
EMPTY = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 9, (64, 64))


def images_of(kind: str, padded: bool = False) -> Images:
    size = huggingface_models.size_of(kind)
    padding = torch.zeros(2, size, size, dtype=torch.bool)
    if padded:
        padding[0, :, size // 2 :] = True
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * ~padding[:, None]
    widths = [size // 2 if padded else size, size]
    return Images(pixels, padding, torch.tensor([[size, width] for width in widths]))


def targets() -> list[Target]:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.6, 0.2, 0.2]])
    return [Target(boxes, torch.tensor([0, 2]), i, (64, 64)) for i in range(2)]


def branched(kind: str, count: int = 3, **changes: Any) -> BranchedDetector[HuggingFaceDetector]:
    """Return a detector with branches that add nothing: their second factors are zero."""
    torch.manual_seed(0)
    detector = HuggingFaceDetector(huggingface_models.build(kind, **changes))
    ffn = detector.ffn(0)
    rank, width, inner = 4, ffn.linear1.in_features, ffn.linear1.out_features
    branches = [LoRABranch(detector.num_layers, width, inner, rank, "zero-b") for _ in range(count)]
    return BranchedDetector(detector, AuxiliaryBranches(branches))


def own_layers(kind: str, model: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of all layers, [L, B, Q, ...], that a model gave its own loss."""
    last_logits, last_boxes = call["logits"][None], call["pred_boxes"][None]
    logits, boxes = call["outputs_class"], call["outputs_coord"]
    if logits is None:
        return last_logits, last_boxes
    if kind in REAL_TIME:
        logits, boxes = logits.transpose(0, 1), boxes.transpose(0, 1)
    before = slice(-model.config.decoder_layers, -1)
    return torch.cat((logits[before], last_logits)), torch.cat((boxes[before], last_boxes))


class Listener:
    """Stands in for a model's loss and keeps what it was given."""

    def __init__(self) -> None:
        self.call: dict[str, Any] = {}

    def __call__(
        self,
        logits: Tensor,
        labels: Any,
        device: Any,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Any = None,
        outputs_coord: Any = None,
        *more: Any,
        **named: Any,
    ) -> tuple[Tensor, dict[str, Tensor], None]:
        self.call = {
            "logits": logits,
            "pred_boxes": pred_boxes,
            "outputs_class": outputs_class,
            "outputs_coord": outputs_coord,
        }
        return logits.sum(), {}, None


@pytest.mark.parametrize("case", CASES)
def test_branches_that_add_nothing_predict_as_the_model_does_at_every_layer(case: str) -> None:
    kind, changes = CASES[case]
    both = branched(kind, **changes).train()
    model = both.detector.model
    both.detector.loss = listener = Listener()
    output, branches = both(images_of(kind), targets())
    assert output.own_loss is not None
    output.own_loss()
    assert branches is not None
    count = output.prediction.logits.shape[1]
    queries = slice(-count, None) if kind in REAL_TIME else slice(0, count)  # denoising first, or further groups behind
    logits, boxes = own_layers(kind, model, listener.call)
    first = huggingface_models.LAYERS - len(logits)  # without auxiliary losses only the last layer's are given
    for i in range(first, huggingface_models.LAYERS):
        for branch in range(3):
            expected = logits[i - first][:, queries], boxes[i - first][:, queries]
            assert torch.equal(branches.layers[i].logits[branch], expected[0]), i
            assert torch.equal(branches.layers[i].boxes[branch], expected[1]), i
        assert torch.equal(output.layers[i].prediction.logits, expected[0])
        assert torch.equal(output.layers[i].prediction.boxes, expected[1])


@pytest.mark.parametrize("case", CASES)
def test_in_evaluation_it_answers_as_the_model_alone(case: str) -> None:
    kind, changes = CASES[case]
    both = branched(kind, **changes).eval()
    detector = both.detector
    is_padded = kind in ("conditional_detr", "dab-detr", "deformable_detr")
    images = images_of(kind, padded=is_padded)
    with torch.no_grad():
        output, branches = both(images)
        alone = huggingface_models.build(kind, **changes).eval()
        expected = alone(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    assert isinstance(detector, Detector)
    assert torch.equal(output.prediction.logits, expected.logits)
    assert torch.equal(output.prediction.boxes, expected.pred_boxes)
    assert branches is not None
    for layer, answer in zip(output.layers, branches.layers, strict=True):
        assert all(torch.equal(logits, layer.prediction.logits) for logits in answer.logits)
        assert all(torch.equal(boxes, layer.prediction.boxes) for boxes in answer.boxes)
    assert (detector.num_classes, detector.num_layers) == (huggingface_models.CLASSES, huggingface_models.LAYERS)
    assert detector.class_layer(0).out_features == huggingface_models.CLASSES
    assert {key.removeprefix("model.") for key in detector.state_dict()} == set(alone.state_dict())


@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_another_class_layer_takes_the_place_of_the_models_own(kind: str) -> None:
    detector = branched(kind, count=0).detector.eval()
    with torch.no_grad():
        layer = detector(images_of(kind)).layers[1]
        own = detector.class_layer(1)
        same = detector.predict(1, layer.hidden, layer.reference, own)
        other = detector.predict(1, layer.hidden, layer.reference, lambda state: own(state) + 1)
    assert torch.equal(same.logits, layer.prediction.logits)
    assert torch.equal(same.boxes, layer.prediction.boxes)
    torch.testing.assert_close(other.logits, same.logits + 1)
    assert torch.equal(other.boxes, same.boxes)


@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_branches_train_themselves_and_what_lies_before_them(kind: str) -> None:
    """Their FFN's inputs and the heads get a gradient; a reference does not, nor does another layer's head."""
    both = branched(kind).train()
    _, branches = both(images_of(kind), targets())
    assert branches is not None
    (branches.layers[1].logits.sum() + branches.layers[1].boxes.sum()).backward()
    assert all(parameter.grad is not None for parameter in both.branches.members[0].layers[1].parameters())
    assert all(parameter.grad is None for parameter in both.branches.members[0].layers[0].parameters())
    assert both.detector.class_layer(1).weight.grad is not None
    if both.detector.class_layer(2) is not both.detector.class_layer(1):
        assert both.detector.class_layer(2).weight.grad is None
    assert both.detector.ffn(1).linear1.weight.grad is not None
    assert both.detector.ffn(2).linear1.weight.grad is None


@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_a_deep_copy_records_into_itself(kind: str) -> None:
    detector = branched(kind, count=0).detector.eval()
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        before = detector(images_of(kind))
        changed = twin(images_of(kind))
        after = detector(images_of(kind))
    assert not torch.equal(changed.layers[0].ffn_hidden, before.layers[0].ffn_hidden)
    assert torch.equal(after.layers[0].ffn_hidden, before.layers[0].ffn_hidden)
