"""What every detector promises: shapes, no dependence on branches, no dependence between images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_detr.branches import AuxiliaryBranches, BranchedDetector, LoRAConfig
from lora_detr.losses.config import CriterionConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.matchers import TopKConfig
from lora_detr.structures import Detector, DetectorOutput, Images, PaddedTargets, Target
from tests.contracts.unions import DETECTORS, tiny_detector

CLASSES = 5
# Settings of a kind that change its code path; a kind without such settings is tested as it is.
SWITCHES: list[dict[str, Any]] = [
    {},
    {"mixed_selection": True, "look_forward_twice": True},
    {"hybrid": {"num_queries": 9}, "dac": True},
    {"hybrid": None, "denoising": None},
]
CASES = [
    pytest.param(kind, switch, id=f"{kind.__name__}{'-'.join(['', *switch])}")
    for kind in DETECTORS
    for switch in SWITCHES
    if switch.keys() <= kind.model_fields.keys()
]
per_detector = pytest.mark.parametrize(("kind", "switch"), CASES)


def images(*sizes: tuple[int, int], padded_to: tuple[int, int] | None = None) -> Images:
    """Return random images of the given (height, width), padded to the largest or to ``padded_to``."""
    height, width = padded_to or (max(h for h, _ in sizes), max(w for _, w in sizes))
    pixels, padding = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width).bool()
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randn(3, h, w)
        padding[i, :h, :w] = False
    return Images(pixels, padding, torch.tensor(sizes))


def build(kind: Any, switch: dict[str, Any], branches: int = 0, **changes: Any) -> BranchedDetector[Any]:
    config = tiny_detector(kind, **switch, **changes)
    detector = config.build(CLASSES, load_weights=False)
    # Random box heads: the initial ones refine nothing, which would hide differences.
    with torch.no_grad():
        for head in detector.heads.boxes:
            head.layers[-1].weight.normal_(std=0.1)
    lora = LoRAConfig(rank=2, matcher=TopKConfig(k=1))
    sizes = (config.decoder_layers, config.hidden_dim, config.ffn_dim, config.dropout)
    return BranchedDetector(detector, AuxiliaryBranches([lora.build(*sizes) for _ in range(branches)]))


def tensors_of(output: DetectorOutput) -> dict[str, Tensor]:
    """Return everything an output publishes, by name."""
    found = {"initial_reference": output.initial_reference, "memory": output.memory}
    for i, layer in enumerate(output.layers):
        found |= {
            f"{i}/cross_output": layer.cross_output,
            f"{i}/ffn_input": layer.ffn_input,
            f"{i}/ffn_hidden": layer.ffn_hidden,
            f"{i}/hidden": layer.hidden,
            f"{i}/reference": layer.reference,
            f"{i}/logits": layer.prediction.logits,
            f"{i}/boxes": layer.prediction.boxes,
        }
    if output.encoder is not None:
        found |= {
            "encoder/logits": output.encoder.prediction.logits,
            "encoder/boxes": output.encoder.prediction.boxes,
            "encoder/anchors": output.encoder.anchors,
        }
    return found


def assert_equal(first: DetectorOutput, second: DetectorOutput) -> None:
    expected = tensors_of(second)
    found = tensors_of(first)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@per_detector
@pytest.mark.parametrize("training", [False, True])
def test_published_tensors_have_their_documented_shapes(kind: Any, switch: dict[str, Any], training: bool) -> None:
    model = build(kind, switch, branches=2).train(training)
    assert isinstance(model.detector, Detector)
    assert model.detector.num_classes == CLASSES
    output, branches = model(images((96, 128), (64, 80)))
    queries, width, ffn, layers = 7, 32, 64, 2
    assert isinstance(output, DetectorOutput)
    assert len(output.layers) == layers
    for layer in output.layers:
        for value in (layer.cross_output, layer.ffn_input, layer.hidden):
            assert value.shape == (2, queries, width)
        assert layer.ffn_hidden.shape == (2, queries, ffn)
        assert layer.reference.shape == layer.prediction.boxes.shape == (2, queries, 4)
        assert layer.prediction.logits.shape == (2, queries, CLASSES)
        assert layer.prediction.boxes.min() >= 0 and layer.prediction.boxes.max() <= 1
    assert output.prediction is output.layers[-1].prediction
    assert output.initial_reference.shape == (2, queries, 4)
    tokens = output.memory.shape[1]
    assert output.memory.shape == (2, tokens, width)
    if output.encoder is not None:
        assert output.encoder.prediction.logits.shape == (2, tokens, CLASSES)
        assert output.encoder.prediction.boxes.shape == output.encoder.anchors.shape == (2, tokens, 4)
    for layer, hidden in zip(branches.layers, branches.hidden, strict=True):
        assert layer.logits.shape == (2, 2, queries, CLASSES)
        assert layer.boxes.shape == (2, 2, queries, 4)
        assert hidden.shape == (2, 2, queries, width)
    assert len(branches.layers) == layers


@per_detector
def test_what_is_published_is_what_was_computed(kind: Any, switch: dict[str, Any]) -> None:
    """Feeding the published input to the layer's FFN gives the published hidden states and predictions."""
    model = build(kind, switch).eval()
    output, _ = model(images((64, 96)))
    for i, layer in enumerate(output.layers):
        ffn_hidden, hidden = model.detector.ffn(i)(layer.ffn_input)
        assert torch.equal(ffn_hidden, layer.ffn_hidden)
        assert torch.equal(hidden, layer.hidden)
        prediction = model.detector.predict(i, hidden, layer.reference)
        assert torch.equal(prediction.logits, layer.prediction.logits)
        assert torch.equal(prediction.boxes, layer.prediction.boxes)


@per_detector
def test_zero_branches_are_the_plain_detector_on_the_same_path(kind: Any, switch: dict[str, Any]) -> None:
    model = build(kind, switch).eval()
    batch = images((64, 96), (80, 64))
    output, branches = model(batch)
    assert branches is None
    assert AuxiliaryBranches([])(output, model.detector) is None
    assert not list(model.branches.parameters())
    assert_equal(output, model.detector(batch))


@per_detector
@pytest.mark.parametrize("training", [False, True])
def test_the_detector_does_not_notice_branches(kind: Any, switch: dict[str, Any], training: bool) -> None:
    model = build(kind, switch, branches=3).train(training)
    batch = images((64, 96), (80, 64))
    torch.manual_seed(1)
    output, branches = model(batch)
    torch.manual_seed(1)
    assert branches is not None
    assert_equal(model.detector(batch), output)
    stripped = build(kind, switch).train(training)
    stripped.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("detector.")}, strict=True)
    torch.manual_seed(1)
    assert_equal(stripped(batch)[0], output)


@per_detector
def test_branch_gradients_stay_in_their_layer_and_reach_the_detector(kind: Any, switch: dict[str, Any]) -> None:
    model = build(kind, switch, branches=1)
    _, branches = model(images((64, 96)))
    (branches.layers[1].boxes.sum() + branches.layers[1].logits.sum()).backward()
    assert model.branches.members[0].layers[1].a1.grad.any()
    assert model.branches.members[0].layers[0].a1.grad is None
    assert model.detector.ffn(1).linear1.weight.grad.any()
    # Boxes of a branch refine a detached reference: the box head of the layer before learns nothing from them.
    assert model.detector.heads.boxes[1].layers[-1].weight.grad.any()
    before = model.detector.heads.boxes[0].layers[-1].weight.grad
    assert before is None or not before.any()


@per_detector
def test_query_groups_exist_in_training_only(kind: Any, switch: dict[str, Any]) -> None:
    """Nothing of a group is read at inference: a detector built without any has the rest of the parameters."""
    config = tiny_detector(kind, **switch)
    model = build(kind, switch)
    batch = images((96, 96), (64, 80))
    targets = [
        Target(torch.full((3, 4), 0.4), torch.tensor([0, 1, 4]), 1, (96, 96)),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2, (64, 80)),
    ]
    names = [group.name for group in model.detector.train()(batch, targets).groups]
    expected = ["denoising"] * config.has_denoising + ["hybrid"] * (config.hybrid is not None) + ["dac"] * config.dac
    assert names == expected
    output = model.detector.eval()(batch)
    assert output.groups == ()
    plain = config.for_inference().build(CLASSES, load_weights=False).eval()
    plain.load_state_dict(model.detector.inference_state(), strict=True)
    assert_equal(plain(batch), output)
    assert plain.train()(batch, targets).groups == ()


@per_detector
def test_every_parameter_has_a_gradient_whatever_the_targets(kind: Any, switch: dict[str, Any]) -> None:
    """Also without any object in the batch, so that ranks never wait for each other."""
    model = build(kind, switch, branches=1)
    criterion = Criterion(2, CriterionConfig(), ["branch0"], [TopKConfig(k=1).build()])
    batch = images((96, 96), (64, 80))
    for count in (2, 0):
        model.zero_grad(set_to_none=True)
        boxes = torch.full((count, 4), 0.4)
        targets = [Target(boxes, torch.zeros(count, dtype=torch.int64), i, (96, 96)) for i in range(2)]
        output, branches = model(batch, targets)
        report = criterion(output, branches, PaddedTargets.from_targets(targets), Normaliser(2 * count))
        assert report.total.isfinite()
        report.total.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []


@per_detector
@pytest.mark.parametrize("norm", ["group", "frozen-batch"])
def test_no_batch_statistics(kind: Any, switch: dict[str, Any], norm: str) -> None:
    backbone = {"kind": "timm", "name": "test_efficientnet", "strides": (16, 32), "weights": "none", "norm": norm}
    model = build(kind, switch, backbone=backbone, dropout=0.0).train()
    for module in model.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = images((96, 96), (96, 96), (64, 80), padded_to=(96, 96))
    together, _ = model(batch)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    for i in range(3):
        alone, _ = model(Images(batch.pixels[i : i + 1], batch.padding[i : i + 1], batch.sizes[i : i + 1]))
        for name, value in tensors_of(together).items():
            assert torch.allclose(tensors_of(alone)[name][0], value[i], rtol=1e-4, atol=1e-5), name


@per_detector
def test_fewer_tokens_than_queries(kind: Any, switch: dict[str, Any]) -> None:
    model = build(kind, switch, branches=1, num_queries=500)
    output, branches = model(images((32, 48), (32, 32)))
    tokens = output.memory.shape[1]
    assert tokens < 500
    assert output.prediction.boxes.shape == (2, tokens, 4)
    assert branches.layers[0].logits.shape == (1, 2, tokens, CLASSES)
    total = output.prediction.logits.sum() + output.prediction.boxes.sum() + branches.layers[1].boxes.sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@per_detector
def test_targets_are_optional_and_change_nothing_in_evaluation(kind: Any, switch: dict[str, Any]) -> None:
    model = build(kind, switch).eval()
    batch = images((96, 96))
    target = Target(torch.rand(2, 4), torch.tensor([0, 1]), 1, (96, 96))
    assert_equal(model(batch)[0], model(batch, [target])[0])


@pytest.mark.parametrize("kind", DETECTORS)
def test_levels_beyond_the_maps_of_the_backbone(kind: Any) -> None:
    for levels in (2, 3, 4):
        model = build(kind, {}, levels=levels).eval()
        output, _ = model(images((256, 256)))
        expected = sum((256 // (16 * 2**i)) ** 2 for i in range(levels))
        assert output.memory.shape[1] == expected
