"""Denoising queries against plain loops, and that they give nothing away to the primary queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.models import RelationDetrConfig
from lora_detr.models.denoising import DenoisingBatch, DenoisingQueries, Noise, draw_noise
from lora_detr.models.detector import TwoStageDetector
from lora_detr.structures import DetectorOutput, Target
from tests.contracts.test_detectors import images
from tests.contracts.unions import tiny_detector
from tests.reference import denoising
from tests.reference.losses import Image
from tests.unit.matchers.random_problems import draw_boxes, draw_targets

CLASSES, WIDTH, PRIMARY, EPSILON = 4, 6, 3, 1e-3


def build(num_queries: int, label_noise: float, box_noise: float, max_targets: int = 500) -> DenoisingQueries:
    return DenoisingQueries(
        WIDTH,
        CLASSES,
        num_queries=num_queries,
        label_noise=label_noise,
        box_noise=box_noise,
        max_targets=max_targets,
        eps=EPSILON,
    )


def as_images(targets: tuple[Target, ...]) -> list[Image]:
    return [Image(target.labels.tolist(), target.boxes.tolist()) for target in targets]


def as_draws(noise: Noise) -> denoising.Draws:
    return denoising.Draws(
        noise.label.tolist(), noise.label_class.tolist(), noise.sign.tolist(), noise.distance.tolist()
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    num_queries=st.integers(1, 20),
    label_noise=st.sampled_from([0.0, 0.5, 1.0]),
    box_noise=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_plain_loops(
    seed: int, counts: list[int], num_queries: int, label_noise: float, box_noise: float
) -> None:
    torch.manual_seed(seed)
    targets = draw_targets(counts, CLASSES)
    module = build(num_queries, label_noise, box_noise)
    noise = draw_noise(denoising.num_copies(as_images(targets), num_queries), CLASSES, torch.device("cpu"))
    found = module(targets, PRIMARY, noise)
    plan = denoising.plan(
        as_images(targets),
        as_draws(noise),
        num_queries=num_queries,
        label_noise=label_noise,
        box_noise=box_noise,
        epsilon=EPSILON,
    )

    total = plan.groups * plan.slots
    assert found.groups == plan.groups
    assert found.content.shape == (len(counts), total, WIDTH)
    assert found.reference.shape == found.box_logits.shape == (len(counts), total, 4)
    for b in range(len(counts)):
        for slot in range(total):
            query = plan.queries.get((b, slot))
            content = torch.zeros(WIDTH) if query is None else module.labels.weight[query.label]
            assert torch.equal(found.content[b, slot], content)
            box = [0.0] * 4 if query is None else query.box
            assert found.box_logits[b, slot].tolist() == pytest.approx(box, rel=1e-4, abs=1e-4)
        assert found.pairs.pairs(0, b) == sorted(plan.positives[b])
    size = total + PRIMARY
    rows = [[denoising.blocked(i, j, plan.groups, plan.slots) for j in range(size)] for i in range(size)]
    assert found.mask.tolist() == rows


def test_the_noise_is_drawn_from_the_generator_that_checkpoints_hold() -> None:
    targets = draw_targets([2, 1], CLASSES)
    module = build(6, 0.5, 1.0)
    torch.manual_seed(5)
    first = module(targets, PRIMARY)
    following = module(targets, PRIMARY)
    torch.manual_seed(5)
    again = module(targets, PRIMARY)
    assert torch.equal(first.box_logits, again.box_logits)
    assert not torch.equal(first.box_logits, following.box_logits)


def test_a_batch_without_objects_has_no_queries_and_draws_nothing_n07() -> None:
    module, targets = build(10, 0.5, 1.0), draw_targets([0, 0], CLASSES)
    before = torch.get_rng_state()
    found: DenoisingBatch = module(targets, PRIMARY)
    assert found.content.shape == (2, 0, WIDTH)
    assert found.mask.shape == (PRIMARY, PRIMARY)
    assert not found.mask.any() and not found.pairs.mask.any()
    assert found.groups == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_table_of_labels_learns() -> None:
    targets = draw_targets([2], CLASSES)
    targets[0].boxes.requires_grad_()
    module = build(6, 0.0, 1.0)
    found = module(targets, PRIMARY)
    found.content.sum().backward()
    assert module.labels.weight.grad is not None
    learned = module.labels.weight.grad.any(1).nonzero().flatten().tolist()
    assert learned == sorted(set(targets[0].labels.tolist()))


def test_positives_start_nearer_to_their_target_than_negatives() -> None:
    target = Target(draw_boxes(6), torch.arange(6) % CLASSES, 0, (64, 64))
    found = build(300, 0.0, 0.4)([target], PRIMARY)
    boxes = found.reference[0].view(found.groups, 2, 6, 4)
    distance = (boxes - target.boxes).abs().sum(-1).mean((0, 2))
    assert distance[0] < 0.6 * distance[1]


class TestInTheDetector:
    """Relation-DETR in training, without dropout: nothing is random but the noise."""

    def build(self, **changes: Any) -> TwoStageDetector:
        config = tiny_detector(RelationDetrConfig, dropout=0.0, hybrid=None, **changes)
        detector: TwoStageDetector = config.build(CLASSES, load_weights=False).train()
        with torch.no_grad():
            for head in detector.heads.boxes:
                head.layers[-1].weight.normal_(std=0.1)  # type: ignore[union-attr, index]
            # Bias of the position relation well above zero, so that a query it reached would be seen.
            detector.decoder.relation.projection.bias.fill_(3.0)  # type: ignore[union-attr]
        return detector

    def hidden(self, output: DetectorOutput) -> list[Tensor]:
        return [layer.hidden for layer in output.layers]

    def test_primary_queries_never_see_what_is_to_be_found(self) -> None:
        """They answer as without any denoising, whatever the targets are, through all layers and their relations."""
        detector, batch = self.build(), images((64, 96), (96, 64))
        targets = draw_targets([3, 1], CLASSES)
        with torch.no_grad():
            alone = self.hidden(detector(batch))
            for given_targets in (targets, targets, draw_targets([0, 4], CLASSES)):
                output = detector(batch, given_targets)
                assert [group.name for group in output.groups] == ["denoising"]
                for found, expected in zip(self.hidden(output), alone, strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_group_sees_no_other_group(self) -> None:
        detector, batch = self.build(denoising={"num_queries": 4}), images((64, 96))
        targets = draw_targets([2], CLASSES)
        draws = draw_noise(2 * 2 * 2, CLASSES, torch.device("cpu"))
        module = detector.query_groups.denoising
        assert module is not None
        forward = module.forward

        def answers(noise: Noise) -> Tensor:
            module.forward = lambda given, primary: forward(given, primary, noise)  # type: ignore[method-assign]
            (group,) = detector(batch, targets).groups
            return group.layers[-1].boxes

        with torch.no_grad():
            first = answers(draws)
            distance = draws.distance.clone()
            distance[4:] = 1 - distance[4:]  # copies 2 and 3 are those of the second group
            second = answers(Noise(draws.label, draws.label_class, draws.sign, distance))
        assert first.shape == (1, 8, 4)
        torch.testing.assert_close(first[:, :4], second[:, :4], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first[:, 4:], second[:, 4:], rtol=0, atol=1e-3)


def test_of_a_crowded_image_only_the_first_targets_are_noised_s03() -> None:
    """The queries are those of the first three targets; the pairs still have a row for every target."""
    targets = draw_targets([7, 2], CLASSES)
    first = tuple(replace(target, labels=target.labels[:3], boxes=target.boxes[:3]) for target in targets)
    torch.manual_seed(0)
    found = build(6, 0.5, 1.0, max_targets=3)(targets, PRIMARY)
    torch.manual_seed(0)
    expected = build(6, 0.5, 1.0)(first, PRIMARY)
    assert (found.groups, found.content.shape, found.box_logits.tolist()) == (
        expected.groups,
        expected.content.shape,
        expected.box_logits.tolist(),
    )
    assert found.pairs.mask.shape[2] == 7
    for image in range(2):
        assert found.pairs.pairs(0, image) == expected.pairs.pairs(0, image)
    assert int(found.pairs.query.max()) < found.content.shape[1]  # any valid index where masked
