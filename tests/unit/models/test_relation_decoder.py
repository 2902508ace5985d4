"""The decoder of Relation-DETR: its position relation against plain loops, and which boxes it relates."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lora_detr.models.decoder import INFERENCE, DecoderPass
from lora_detr.models.heads import Heads
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Tokens
from lora_detr.models.proposals import InitialQueries
from lora_detr.models.relation_decoder import PositionRelation, RelationDecoder, box_relations
from lora_detr.structures import DecoderLayerOutput
from tests.reference import relation
from tests.unit.matchers.random_problems import draw_boxes

LAYERS, WIDTH, HEADS, QUERIES, CLASSES = 3, 32, 4, 5, 3


@pytest.mark.parametrize(("images", "queries"), [(1, 2), (2, 4), (3, 7)])
def test_the_bias_equals_plain_loops(images: int, queries: int) -> None:
    module = PositionRelation(HEADS)
    torch.nn.init.normal_(module.projection.weight)
    source, target = draw_boxes(images, queries), draw_boxes(images, queries)
    found = module(source, target)
    assert found.shape == (images, HEADS, queries, queries)
    weight, offset = module.projection.weight.flatten(1).tolist(), module.projection.bias
    assert offset is not None
    for b in range(images):
        expected = relation.attention_bias(source[b].tolist(), target[b].tolist(), weight, offset.tolist())
        # float32 phases reach about 1,000, where one unit in the last place is 6e-5.
        torch.testing.assert_close(found[b], torch.tensor(expected), rtol=0, atol=1e-3)
    assert found.max() > 0


def test_relations_by_hand() -> None:
    """The first box is the source: its sides divide the distance, and its logarithm stands above."""
    wide, small = torch.tensor([[0.5, 0.5, 0.8, 0.4]]), torch.tensor([[0.1, 0.5, 0.2, 0.1]])
    found = box_relations(torch.cat((wide, small)), torch.cat((wide, small)))
    assert found.shape == (2, 2, 4)
    logs = torch.tensor([1.5, 1.0, 4.0, 4.0]).log()  # 0.4 / 0.8 + 1, 0 / 0.4 + 1, 0.8 / 0.2, 0.4 / 0.1
    torch.testing.assert_close(found[0, 1], logs, rtol=0, atol=2e-4)
    torch.testing.assert_close(found[1, 0], torch.tensor([3.0, 1.0, 0.25, 0.25]).log(), rtol=0, atol=2e-4)
    torch.testing.assert_close(found[0, 0], torch.zeros(4))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_boxes_without_size_or_distance_give_a_finite_bias_n04(value: float) -> None:
    module = PositionRelation(HEADS)
    boxes = torch.cat((draw_boxes(1, 2), torch.full((1, 2, 4), value), torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])), 1)
    bias = module(boxes, boxes.flip(1))
    assert bias.isfinite().all()
    bias.sum().backward()
    assert module.projection.weight.grad is not None and module.projection.weight.grad.isfinite().all()


def test_no_gradient_reaches_the_boxes_but_the_projection_learns() -> None:
    module = PositionRelation(HEADS)
    source, target = draw_boxes(2, 4).requires_grad_(), draw_boxes(2, 4).requires_grad_()
    module(source, target).sum().backward()
    assert source.grad is None and target.grad is None
    assert module.projection.weight.grad is not None and module.projection.weight.grad.any()


class Scene:
    """A decoder whose boxes move from layer to layer, with a memory to read; nothing is random after the start."""

    def __init__(self) -> None:
        self.decoder = RelationDecoder(LAYERS, BlockSizes(WIDTH, 64, HEADS, 1, 2, 0.0)).eval()
        self.heads = Heads(LAYERS + 1, WIDTH, CLASSES, 1e-3, normalised=True).eval()
        # At its start the shared norm only repeats that of the layer.
        torch.nn.init.normal_(self.heads.norm.weight)  # type: ignore[arg-type]
        self.tokens = Tokens(
            torch.randn(2, 16, WIDTH),
            torch.zeros(2, 16, WIDTH),
            torch.zeros(2, 16).bool(),
            ((4, 4),),
            torch.ones(2, 1, 2),
        )
        self.queries = InitialQueries(draw_boxes(2, QUERIES), torch.randn(2, QUERIES, WIDTH), None)

    def run(self, how: DecoderPass = INFERENCE) -> tuple[DecoderLayerOutput, ...]:
        memory = self.tokens.features
        return self.decoder(self.queries, memory, self.tokens, self.heads, how)

    def relations(
        self, how: DecoderPass = INFERENCE
    ) -> tuple[tuple[DecoderLayerOutput, ...], list[tuple[Tensor, ...]]]:
        """Run, and return (source, target) of each relation that was asked for too."""
        asked: list[tuple[Tensor, ...]] = []
        handle = self.decoder.relation.register_forward_hook(lambda module, inputs, output: asked.append(inputs))
        try:
            return self.run(how), asked
        finally:
            handle.remove()


def test_a_layer_relates_its_boxes_to_those_it_started_from() -> None:
    scene = Scene()
    outputs, asked = scene.relations()
    boxes = [layer.prediction.boxes for layer in outputs]
    expected = [(scene.queries.reference, boxes[0]), (boxes[0], boxes[1])]
    assert len(asked) == LAYERS - 1  # behind the last layer nothing is left to bias
    for (source, target), (before, after) in zip(asked, expected, strict=True):
        assert torch.equal(source, before)
        assert torch.equal(target, after)
    assert not torch.equal(boxes[0], boxes[1])


def test_a_pass_without_relation_is_one_whose_bias_is_zero() -> None:
    scene = Scene()
    related, _ = scene.relations()
    plain, asked = scene.relations(DecoderPass(relation=False))
    assert asked == []
    assert torch.equal(plain[0].hidden, related[0].hidden)  # the first layer has none anyway
    assert not torch.allclose(plain[1].hidden, related[1].hidden, rtol=0, atol=1e-4)
    with torch.no_grad():
        scene.decoder.relation.projection.weight.zero_()
        assert scene.decoder.relation.projection.bias is not None
        scene.decoder.relation.projection.bias.fill_(-1.0)  # below zero, so that the ReLU gives zero
    silent, asked = scene.relations()
    assert len(asked) == LAYERS - 1
    for first, second in zip(silent, plain, strict=True):
        torch.testing.assert_close(first.hidden, second.hidden, rtol=1e-4, atol=1e-5)


def test_a_pass_without_self_attention_relates_nothing_and_keeps_queries_apart() -> None:
    scene = Scene()
    outputs, asked = scene.relations(DecoderPass(self_attention=False))
    assert asked == []
    scene.queries = InitialQueries(scene.queries.reference[:, :2], scene.queries.content[:, :2], None)
    for alone, layer in zip(scene.run(DecoderPass(self_attention=False)), outputs, strict=True):
        torch.testing.assert_close(alone.hidden, layer.hidden[:, :2], rtol=1e-4, atol=1e-5)


def test_a_mask_blocks_in_every_layer_whatever_the_relation() -> None:
    """The first three of five queries see only each other: what they answer does not depend on the rest."""
    scene = Scene()
    mask = torch.zeros(QUERIES, QUERIES, dtype=torch.bool)
    mask[:3, 3:] = True
    before = scene.run(DecoderPass(mask=mask))
    content, reference = scene.queries.content.clone(), scene.queries.reference.clone()
    content[:, 3:] += 1.0
    reference[:, 3:] = draw_boxes(2, 2)
    scene.queries = InitialQueries(reference, content, None)
    for first, second in zip(before, scene.run(DecoderPass(mask=mask)), strict=True):
        torch.testing.assert_close(first.hidden[:, :3], second.hidden[:, :3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first.prediction.boxes[:, :3], second.prediction.boxes[:, :3], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first.hidden[:, 3:], second.hidden[:, 3:], rtol=0, atol=1e-2)


def test_the_next_reference_is_made_without_the_norm_that_heads_share() -> None:
    scene = Scene()
    outputs = scene.run()
    assert torch.equal(outputs[0].reference, scene.queries.reference)
    for i, (layer, following) in enumerate(itertools.pairwise(outputs)):
        expected = scene.heads.refine(i, layer.hidden, layer.reference)
        torch.testing.assert_close(following.reference, expected)
        assert not torch.allclose(following.reference, layer.prediction.boxes, rtol=0, atol=1e-4)


def test_boxes_train_the_head_of_the_layer_before() -> None:
    """Look forward twice: the reference that a layer publishes carries gradient, the one before it does not."""
    scene = Scene()
    outputs = scene.run()
    outputs[2].prediction.boxes.sum().backward()
    # Layer 2 refines what head 1 made; what head 0 made was detached there.
    grads = [head.layers[-1].weight.grad for head in scene.heads.boxes]  # type: ignore[union-attr, index]
    assert [bool(grad is not None and grad.any()) for grad in grads] == [False, True, True, False]
