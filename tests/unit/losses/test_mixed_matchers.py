"""Branches matched by different rules: what each sees, and that pairs are those it gives alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.losses.config import BranchLossConfig, CriterionConfig, DacLossConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.source import Source
from lora_detr.matchers import TopKConfig
from lora_detr.matchers.atss import ATSSConfig
from lora_detr.matchers.hungarian_repeat import HungarianRepeatConfig
from lora_detr.matchers.many_to_one import ManyToOneConfig
from lora_detr.matchers.scores import overlap_score
from lora_detr.matchers.simota import SimOTAConfig
from lora_detr.matchers.task_aligned import TaskAlignedConfig
from lora_detr.models import DeformableDetrConfig
from lora_detr.structures import Assignment, Images, PaddedTargets, Prediction, QueryGroupOutput
from tests.contracts.unions import tiny_detector
from tests.unit.losses.step_outputs import Step, make_step

LAYERS = 3


def step_of(branches: int) -> Step:
    return make_step(4, layers=LAYERS, branches=branches, counts=[4, 0, 2], queries=14, classes=3)


def sources_of(step: Step, matchers: list[Any], branch: BranchLossConfig | None = None) -> list[Source]:
    names = [f"branch{i}" for i in range(len(matchers))]
    criterion = Criterion(LAYERS, CriterionConfig(branch=branch or BranchLossConfig()), names, matchers)
    return criterion.match(step.output, step.branches, step.targets, Normaliser(6))


class Recorder:
    """Pairs nothing, and keeps what it was given."""

    def __init__(self, reads_references: bool) -> None:
        self.reads_references = reads_references
        self.seen: list[Prediction] = []

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        self.seen.append(prediction)
        shape = (*prediction.boxes.shape[:2], targets.mask.shape[1], 1)
        return Assignment(torch.zeros(shape).long(), torch.zeros(shape), torch.zeros(shape).bool())


def with_references(step: Step, references: list[Tensor]) -> Step:
    layers = zip(step.output.layers, references, strict=True)
    output = replace(step.output, layers=tuple(replace(layer, reference=reference) for layer, reference in layers))
    return replace(step, output=output)


def test_every_branch_sees_the_boxes_that_its_layers_refine() -> None:
    matchers = [Recorder(False), Recorder(True)]
    step = step_of(2)
    sources_of(step, matchers)
    expected = torch.stack([layer.reference for layer in step.output.layers])
    for matcher, boxes in zip(matchers, step.leaves["branch/boxes"], strict=True):
        (seen,) = matcher.seen
        assert seen.reference is not None and torch.equal(seen.reference, expected)
        assert torch.equal(seen.boxes, boxes)
        assert not seen.reference.requires_grad


@pytest.mark.parametrize(("width", "expected"), [(2, None), (4, 4), (9, 4)])
def test_references_that_are_points_are_left_out_and_wider_ones_cut(width: int, expected: int | None) -> None:
    """One layer with points is enough: Deformable-DETR of transformers starts from them."""
    plain = step_of(1)
    boxes = torch.rand(3, 14, 9, requires_grad=True)
    matcher = Recorder(True)
    sources_of(with_references(plain, [boxes[..., :width], boxes, boxes]), [matcher])
    reference = matcher.seen[0].reference
    assert (None if reference is None else reference.shape[-1]) == expected
    assert reference is None or torch.equal(reference[1], boxes[..., :4])


def test_references_nobody_reads_are_not_put_together() -> None:
    matcher = Recorder(False)
    sources_of(step_of(1), [matcher])
    assert (matcher.seen[0].reference, matcher.seen[0].overlap) == (None, None)


def test_matchers_of_several_branches_share_the_overlaps() -> None:
    matchers = [Recorder(False), Recorder(False)]
    step = step_of(2)
    sources_of(step, matchers)
    for matcher in matchers:
        (seen,) = matcher.seen
        assert seen.overlap is not None
        assert torch.equal(seen.overlap, overlap_score(replace(seen, overlap=None), step.targets))


@pytest.mark.parametrize("merge", [False, True])
def test_pairs_of_mixed_branches_are_those_that_each_rule_gives_alone(merge: bool) -> None:
    """Least-cost ones too, which are solved with those of the primary path."""
    topk = TopKConfig(k=3, positive_fraction=None)
    configs = [
        *(HungarianRepeatConfig(k=4), topk, ATSSConfig(k=5), ManyToOneConfig(k=3), ManyToOneConfig(k=2)),
        *(SimOTAConfig(k=6), TaskAlignedConfig(k=4, inside=True), HungarianRepeatConfig(k=1)),
    ]
    step = step_of(len(configs))
    primary, branches, *_ = sources_of(
        step, [config.build() for config in configs], BranchLossConfig(merge_one_to_one=merge)
    )
    reference = torch.stack([layer.reference for layer in step.output.layers])
    for n, config in enumerate(configs):
        logits, boxes = step.leaves["branch/logits"][n].detach(), step.leaves["branch/boxes"][n].detach()
        alone = config.build()(Prediction(logits, boxes, reference), step.targets)
        for layer in range(LAYERS):
            for image in range(3):
                found = set(branches.assignment.pairs(n * LAYERS + layer, image))
                expected = set(alone.pairs(layer, image))
                if merge:
                    assert len({query for query, _ in found}) == len(found)
                    paired = {query for query, _ in expected}
                    one_to_one = primary.assignment.pairs(layer, image)
                    added = {pair for pair in one_to_one if pair[0] not in paired}
                    # Of a query that top k gives two targets, one is kept.
                    assert added <= found <= expected | added
                    expected = found if config is topk else expected | added
                assert found == expected


def test_many_to_one_of_unequal_settings_is_matched_apart() -> None:
    step = step_of(2)
    (_, branches, *_) = sources_of(step, [ManyToOneConfig(tau=tau).build() for tau in (1.5, 0.5)])
    assert branches.assignment.mask.shape[0] == 2 * LAYERS
    assert branches.one_to_one


def test_the_pass_without_self_attention_has_references_of_its_own() -> None:
    detector = tiny_detector(DeformableDetrConfig, dac=True, dropout=0.0).build(3, load_weights=False).train()
    images = Images(torch.rand(1, 3, 96, 128), torch.zeros(1, 96, 128).bool(), torch.tensor([[96, 128]]))
    output = detector(images)
    (group,) = (group for group in output.groups if group.name == "dac")
    first, second = group.layers
    assert torch.equal(first.reference, output.layers[0].reference)
    assert torch.equal(second.reference, first.boxes)
    assert not second.reference.requires_grad

    step = make_step(4, layers=2, branches=0, counts=[2], queries=7, classes=3)
    config = CriterionConfig(dac=DacLossConfig(matcher=ATSSConfig(k=3)))
    plain = replace(step.output, groups=(QueryGroupOutput("dac", group.layers),))
    (*_, dac) = Criterion(2, config).match(plain, None, step.targets, Normaliser(2))
    stacked = Prediction(
        *(torch.stack(parts) for parts in zip(*((p.logits, p.boxes, p.reference) for p in group.layers), strict=True))
    )
    alone = ATSSConfig(k=3).build()(stacked, step.targets)
    assert torch.equal(dac.assignment.query, alone.query) and torch.equal(dac.assignment.mask, alone.mask)
