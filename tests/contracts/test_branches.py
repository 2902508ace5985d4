"""What every kind of branch promises: shapes, gradients that reach the primary path, no trace in the detector."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_detr.branches import AuxiliaryBranches, BranchConfig, BranchedDetector
from tests.contracts.test_detectors import CLASSES, assert_equal, images
from tests.contracts.unions import DETECTORS, members, tiny_detector

KINDS = members(BranchConfig)
per_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
per_detector = pytest.mark.parametrize("detector", DETECTORS, ids=lambda kind: kind.__name__)
# What of a decoder layer a branch of each kind reads, and so trains.
READS = {"lora": ("ffn", "cross_attention"), "ffn": ("cross_attention",), "cross-ffn": ("cross_attention",)}


def build(detector: Any, *kinds: Any, **changes: Any) -> BranchedDetector[Any]:
    config = tiny_detector(detector, **changes)
    sizes = (config.decoder_layers, config.hidden_dim, config.ffn_dim, config.dropout)
    branches = [kind.model_validate({"matcher": {"kind": "topk", "k": 1}}).build(*sizes) for kind in kinds]
    built = config.build(CLASSES, load_weights=False)
    with torch.no_grad():
        for head in built.heads.boxes:
            head.layers[-1].weight.normal_(std=0.1)
    return BranchedDetector(built, AuxiliaryBranches(branches))


@per_kind
@per_detector
def test_gradient_reaches_the_primary_path(detector: Any, kind: Any) -> None:
    model = build(detector, kind)
    _, branches = model(images((64, 96)))
    last = branches.layers[1]
    (last.boxes.square().sum() + last.logits.square().sum()).backward()
    layer = model.detector.decoder.layers[1]
    for name in READS[kind.model_fields["kind"].default]:
        trained = [p.grad for p in getattr(layer, name).parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in trained), name
    assert model.detector.decoder.layers[0].ffn.linear1.weight.grad.any()
    assert any(p.grad.any() for p in model.detector.encoder.parameters() if p.grad is not None)
    assert model.detector.heads.classes[1].weight.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in model.branches.members[0].layers[1].parameters())


@pytest.mark.parametrize(
    ("kind", "follows"), [("lora", False), ("ffn", False), ("cross-ffn", True)], ids=["lora", "ffn", "cross-ffn"]
)
def test_whose_boxes_train_the_layer_before(kind: str, follows: bool) -> None:
    """With look forward twice, only MS-DETR's branch follows the primary's reference with its gradient."""
    config = next(one for one in KINDS if one.model_fields["kind"].default == kind)
    detector = next(one for one in DETECTORS if "look_forward_twice" in one.model_fields)
    model = build(detector, config, mixed_selection=True, look_forward_twice=True)
    _, branches = model(images((64, 96)))
    branches.layers[1].boxes.sum().backward()
    before = model.detector.heads.boxes[0].layers[-1].weight.grad
    assert (before is not None and bool(before.any())) == follows


@per_detector
def test_kinds_can_be_mixed_in_any_order(detector: Any) -> None:
    kinds = [KINDS[0], KINDS[1], KINDS[2], KINDS[0]]
    model = build(detector, *kinds).eval()
    batch = images((64, 96), (80, 64))
    output, together = model(batch)
    assert together.layers[0].logits.shape == (4, 2, 7, CLASSES)
    for index in range(4):
        alone = AuxiliaryBranches([model.branches.members[index]])(output, model.detector)
        assert alone is not None
        for layer, one in zip(together.layers, alone.layers, strict=True):
            assert torch.allclose(layer.logits[index], one.logits[0], rtol=0, atol=1e-5)
            assert torch.allclose(layer.boxes[index], one.boxes[0], rtol=0, atol=1e-5)
    assert_equal(model.detector(batch), output)


@pytest.mark.parametrize("detector", DETECTORS[:1])
def test_merging_gives_the_branch(detector: Any) -> None:
    for kind in KINDS:
        model = build(detector, kind).eval()
        batch = images((64, 96))
        output, branches = model(batch)
        member = model.branches.members[0]
        if member.follows_reference:
            with pytest.raises(Exception, match="cross-ffn"):
                member.merge_into(1, model.detector.ffn(1))
            continue
        member.merge_into(1, model.detector.ffn(1))
        merged = model.detector(batch).prediction
        assert torch.allclose(merged.logits, branches.layers[1].logits[0], rtol=0, atol=1e-4)
        assert not torch.allclose(merged.logits, output.prediction.logits, rtol=0, atol=1e-3)
