"""Which queries the groups of training decode, how, and that the primary queries do not notice them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.models import DeformableDetrConfig, RelationDetrConfig
from lora_detr.models.decoder import DecoderPass
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.proposals import InitialQueries
from lora_detr.structures import DetectorOutput, EncoderOutput
from tests.contracts.test_detectors import images
from tests.contracts.unions import tiny_detector
from tests.unit.matchers.random_problems import draw_targets

CLASSES, QUERIES, FURTHER = 4, 7, 9


def build(kind: Any, **changes: Any) -> TwoStageDetector:
    """Return a detector in training mode whose only chance is the noise of denoising queries."""
    detector: TwoStageDetector = tiny_detector(kind, dropout=0.0, **changes).build(CLASSES, load_weights=False).train()
    with torch.no_grad():
        for head in [*detector.heads.boxes, *detector.heads.classes]:
            last = head.layers[-1] if hasattr(head, "layers") else head
            last.weight.normal_(std=0.1)  # type: ignore[union-attr]
    return detector


class Seen:
    """What the decoder was asked for: queries and way of each pass, in order."""

    def __init__(self, detector: TwoStageDetector) -> None:
        self.passes: list[tuple[InitialQueries, DecoderPass]] = []
        detector.decoder.register_forward_hook(self.record)  # type: ignore[attr-defined]

    def record(self, module: object, inputs: tuple[Any, ...], output: object) -> None:
        self.passes.append((inputs[0], inputs[4]))


def proposed(encoder: EncoderOutput | None, selected: Tensor) -> Tensor:
    """Return the boxes of chosen proposals."""
    assert encoder is not None
    return encoder.prediction.boxes.gather(1, selected[..., None].expand(-1, -1, 4))


def best_first(encoder: EncoderOutput | None) -> Tensor:
    """Return the tokens by falling logit of class 0."""
    assert encoder is not None
    return encoder.prediction.logits[..., 0].sort(dim=1, descending=True).indices


@pytest.mark.parametrize("table", [False, True])
def test_hybrid_queries_are_the_tokens_behind_those_of_the_primary_path(table: bool) -> None:
    detector = build(DeformableDetrConfig, hybrid={"num_queries": FURTHER}, mixed_selection=table)
    seen = Seen(detector)
    output = detector(images((96, 128), (128, 96)))
    (primary, _), (further, how) = seen.passes
    order = best_first(output.encoder)
    # A vectorised sigmoid may round the last bit otherwise where it is given fewer numbers.
    for queries, chosen in ((primary, order[:, :QUERIES]), (further, order[:, QUERIES : QUERIES + FURTHER])):
        torch.testing.assert_close(queries.reference, proposed(output.encoder, chosen).detach(), rtol=0, atol=1e-6)
    assert how.self_attention and how.mask is None
    hybrid = detector.query_groups.hybrid
    assert hybrid is not None
    if table:
        assert hybrid.content is not None
        assert torch.equal(further.content, hybrid.content.weight.expand(2, -1, -1))
    else:
        assert not list(hybrid.parameters())
    (group,) = output.groups
    assert group.encoder is None
    assert [layer.boxes.shape for layer in group.layers] == [(2, FURTHER, 4)] * 2


def test_relation_proposes_hybrid_queries_by_heads_of_their_own() -> None:
    detector = build(RelationDetrConfig, hybrid={"num_queries": FURTHER}, denoising=None)
    seen = Seen(detector)
    output = detector(images((96, 128), (128, 96)))
    (group,) = output.groups
    (_, _), (further, how) = seen.passes
    assert group.encoder is not None and group.encoder.selected is not None
    best = group.encoder.prediction.logits.amax(-1).topk(FURTHER, dim=1).indices
    assert torch.equal(group.encoder.selected, best)
    assert torch.equal(further.reference, proposed(group.encoder, best))
    assert how == DecoderPass(relation=False)
    assert output.encoder is not None
    assert not torch.allclose(group.encoder.prediction.logits, output.encoder.prediction.logits, rtol=0, atol=1e-3)


def test_dac_decodes_the_primary_queries_without_self_attention() -> None:
    detector = build(DeformableDetrConfig, dac=True)
    seen = Seen(detector)
    output = detector(images((96, 128)))
    (primary, _), (again, how) = seen.passes
    assert again is primary
    assert how == DecoderPass(self_attention=False)
    assert not list(detector.query_groups.parameters())
    (group,) = output.groups
    for layer, own in zip(group.layers, output.layers, strict=True):
        assert not torch.allclose(layer.logits, own.prediction.logits, rtol=0, atol=1e-4)


def hidden(output: DetectorOutput) -> list[Tensor]:
    return [layer.hidden for layer in output.layers]


@pytest.mark.parametrize(
    ("kind", "changes", "names"),
    [
        (DeformableDetrConfig, {"hybrid": {"num_queries": FURTHER}, "dac": True}, ["hybrid", "dac"]),
        (RelationDetrConfig, {"hybrid": {"num_queries": FURTHER}, "dac": True}, ["denoising", "hybrid", "dac"]),
    ],
    ids=["deformable", "relation"],
)
def test_the_primary_queries_do_not_notice_any_group(kind: Any, changes: dict[str, Any], names: list[str]) -> None:
    detector, batch, targets = build(kind, **changes), images((64, 96), (96, 64)), draw_targets([2, 0], CLASSES)
    with torch.no_grad():
        output = detector(batch, targets)
        assert [group.name for group in output.groups] == names
        groups = detector.query_groups
        groups.hybrid, groups.dac, groups.denoising = None, False, None
        alone = detector(batch, targets)
    assert alone.groups == ()
    for found, expected in zip(hidden(output), hidden(alone), strict=True):
        assert found.shape[1] == QUERIES
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_whose_tokens_are_all_primary_queries_leaves_none_for_the_group_n10() -> None:
    detector = build(DeformableDetrConfig, hybrid={"num_queries": FURTHER}, num_queries=500)
    (group,) = detector(images((32, 48), (48, 32))).groups
    assert [tuple(layer.boxes.shape) for layer in group.layers] == [(2, 0, 4)] * 2
    few = build(DeformableDetrConfig, hybrid={"num_queries": 500})
    output = few(images((32, 48), (48, 32)))
    tokens = output.memory.shape[1]
    assert output.groups[0].layers[0].boxes.shape == (2, tokens - QUERIES, 4)
