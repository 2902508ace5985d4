"""Outputs of a made-up training step, and the plain losses of such a step under every option."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_detr.losses.config import BranchLossConfig, CriterionConfig
from lora_detr.matchers import HungarianConfig, TopKConfig
from lora_detr.structures import (
    BranchOutput,
    DecoderLayerOutput,
    DetectorOutput,
    EncoderOutput,
    PaddedTargets,
    Prediction,
    Target,
)
from tests.reference import hungarian, losses, one_to_many
from tests.reference.boxes import iou
from tests.unit.matchers.random_problems import draw_boxes, draw_targets, near_targets

Terms = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """What a criterion reads in one step; ``leaves`` are the tensors that want a gradient."""

    output: DetectorOutput
    branches: BranchOutput | None
    targets: PaddedTargets
    images: tuple[Target, ...]
    leaves: dict[str, Tensor]


def make_step(
    seed: int, *, layers: int, branches: int, counts: list[int], queries: int, classes: int, tokens: int = 9
) -> Step:
    """Draw a step: logits and boxes of primary [L, B, Q, ...], branches [N, L, B, Q, ...] and encoder [B, S, ...]."""
    torch.manual_seed(seed)
    images, batch = draw_targets(counts, classes), len(counts)
    flat = near_targets(draw_boxes((1 + branches) * layers, batch, queries), images)
    leaves = {
        "primary/logits": torch.randn(layers, batch, queries, classes),
        "primary/boxes": flat[:layers].clone(),
        "encoder/logits": torch.randn(batch, tokens, classes),
        "encoder/boxes": draw_boxes(batch, tokens),
    }
    if branches:
        leaves["branch/logits"] = torch.randn(branches, layers, batch, queries, classes)
        leaves["branch/boxes"] = flat[layers:].reshape(branches, layers, batch, queries, 4).clone()
    for leaf in leaves.values():
        leaf.requires_grad_()
    unread = torch.empty(0)
    published = tuple(
        DecoderLayerOutput(
            unread,
            unread,
            unread,
            unread,
            # Those of the layer before, as in a decoder; the first has those of the last, to draw nothing more.
            leaves["primary/boxes"][layer - 1].detach(),
            Prediction(leaves["primary/logits"][layer], leaves["primary/boxes"][layer]),
        )
        for layer in range(layers)
    )
    encoder = EncoderOutput(
        Prediction(leaves["encoder/logits"], leaves["encoder/boxes"]),
        near_targets(draw_boxes(1, batch, tokens), images)[0],
    )
    side_car = None
    if branches:
        side_car = BranchOutput(
            tuple(
                Prediction(leaves["branch/logits"][:, layer], leaves["branch/boxes"][:, layer])
                for layer in range(layers)
            ),
            (),
        )
    output = DetectorOutput(published, encoder, unread, unread)
    return Step(output, side_car, PaddedTargets.from_targets(images), images, leaves)


def plain_losses(
    step: Step, config: CriterionConfig, matchers: list[TopKConfig], priority: Tensor
) -> dict[str, Tensor]:
    """Return every loss sum by the name of our key, image by image and pair by pair, in float64, not normalised.

    Args:
        step: outputs and targets.
        config: all of its options are honoured.
        matchers: of the branches.
        priority: [N * L, B, Q] of the capped candidates.
    """
    leaves = {name: leaf.double() for name, leaf in step.leaves.items()}
    result: dict[str, Tensor] = {}

    def add(source: str, terms: Terms) -> None:
        for kind, term in zip(("class", "l1", "giou"), terms, strict=True):
            result[f"{source}/{kind}"] = result.get(f"{source}/{kind}", 0) + term

    num_layers = len(step.output.layers)
    for b, target in enumerate(step.images):
        image = losses.Image(target.labels.tolist(), target.boxes.tolist())
        for layer in range(num_layers):
            logits, boxes = leaves["primary/logits"][layer, b], leaves["primary/boxes"][layer, b]
            one_to_one = cheapest(logits, boxes, image, config.primary.matcher)
            overlaps = [iou(boxes[q].tolist(), image.boxes[t]) for q, t in one_to_one]
            quality = overlaps if config.primary.classification == "quality" else None
            add(f"primary/layer{layer}", _terms(logits, boxes, one_to_one, image, quality, config))
            for n, matcher in enumerate(matchers):
                logits, boxes = leaves["branch/logits"][n, layer, b], leaves["branch/boxes"][n, layer, b]
                pairs, chosen = branch_pairs(
                    logits,
                    boxes,
                    one_to_one,
                    image,
                    config.branch,
                    matcher,
                    priority[n * num_layers + layer, b].tolist(),
                )
                quality = chosen if config.branch.classification == "quality" else None
                add(f"branch{n}/layer{layer}", _terms(logits, boxes, pairs, image, quality, config))
        foreground = losses.Image([0] * len(image.labels), image.boxes)
        logits, boxes = leaves["encoder/logits"][b], leaves["encoder/boxes"][b]
        assert step.output.encoder is not None
        anchors = step.output.encoder.anchors[b] if config.encoder.match_to == "anchors" else boxes
        pairs = cheapest(logits, anchors, foreground, config.encoder.matcher)
        add("encoder", _terms(logits, boxes, pairs, foreground, None, config))
    return result


def cheapest(
    logits: Tensor, boxes: Tensor, image: losses.Image, matcher: HungarianConfig, repeats: int = 1
) -> list[tuple[int, int]]:
    """Return the one-to-one pairs of an image whose list of targets is repeated."""
    cost = hungarian.cost_matrix(
        logits.tolist(),
        boxes.tolist(),
        image.labels,
        image.boxes,
        class_weight=matcher.class_cost,
        l1_weight=matcher.l1_cost,
        giou_weight=matcher.giou_cost,
        epsilon=matcher.eps,
    )
    return [(q, t % len(image.labels)) for q, t in hungarian.solve([row * repeats for row in cost])]


def branch_pairs(
    logits: Tensor,
    boxes: Tensor,
    one_to_one: list[tuple[int, int]],
    image: losses.Image,
    config: BranchLossConfig,
    matcher: TopKConfig,
    priority: list[float],
) -> tuple[list[tuple[int, int]], list[float]]:
    """Return the pairs of a branch in the order that matters, and the quality of each."""
    score = one_to_many.matching_scores(
        logits.tolist(), boxes.tolist(), image.labels, image.boxes, matcher.class_weight
    )
    rules = one_to_many.Rules(
        matcher.k,
        matcher.threshold,
        matcher.strict_threshold,
        matcher.force_best,
        matcher.positive_fraction,
        matcher.candidates,
    )
    pairs = one_to_many.assign(score, rules, priority=priority)
    if config.merge_one_to_one:
        pairs = one_to_many.unite(one_to_one, pairs)
    if config.duplicates == "clean":
        pairs = one_to_many.unite([], pairs)  # the last pair of a query is its best
    if config.quality == "score":
        return pairs, [score[t][q] for q, t in pairs]
    return pairs, [iou(boxes[q].tolist(), image.boxes[t]) for q, t in pairs]


def _terms(
    logits: Tensor,
    boxes: Tensor,
    pairs: list[tuple[int, int]],
    image: losses.Image,
    quality: list[float] | None,
    config: CriterionConfig,
) -> Terms:
    if quality is None:
        classification = losses.focal(logits, pairs, image.labels)
    else:
        classification = losses.assignment_quality(
            logits,
            pairs,
            image.labels,
            quality,
            negative_gamma=config.constants.negative_gamma,
            factor=config.constants.quality_factor,
        )
    return classification, losses.box_l1(boxes, pairs, image), losses.box_giou(boxes, pairs, image)
