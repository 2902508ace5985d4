"""Losses: one image, layer and branch after the other, pair by pair. A whole criterion for the Deformable family.

Logits and boxes are tensors, so that autograd gives gradients; all arithmetic is in float64. Pairs are (query, target)
in the order that matters: where one value a query is needed, the last pair wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.reference import hungarian, one_to_many
from tests.reference.boxes import giou, iou, l1

Pair = tuple[int, int]


@dataclass(frozen=True)
class Image:
    """Labels and (cx, cy, w, h) boxes of the targets of one image, as plain numbers."""

    labels: list[int]
    boxes: list[list[float]]


@dataclass(frozen=True)
class Weights:
    """Weights of the three terms."""

    classification: float
    l1: float
    giou: float


@dataclass(frozen=True)
class Criterion:
    """Which loss is used where.

    Attributes:
        quality_aware: classification of primary and branches is quality-aware, else focal; the encoder is always focal.
        branches: the rules of the assigner of each branch.
        class_weight: of the matching score.
        unite: pairs of the primary path join those of the branches.
        suffixes: what the loss names of each branch end with.
        primary, branch, encoder: weights; those of the branches already divided by their number.
    """

    quality_aware: bool
    branches: tuple[one_to_many.Rules, ...] = ()
    class_weight: float = 0.3
    unite: bool = False
    suffixes: tuple[str, ...] = ()
    primary: Weights = field(default=Weights(1, 5, 2))
    branch: Weights = field(default=Weights(2, 5, 2))
    encoder: Weights = field(default=Weights(2, 5, 2))


@dataclass(frozen=True)
class Report:
    """Loss values and weights by official name, and the weighted total."""

    values: dict[str, Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> Tensor:
        """The weighted sum of all values."""
        return torch.stack([self.values[name] * self.weights[name] for name in self.values]).sum()


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -(t log p + (1 - t) log(1 - p)) for every entry."""
    return -(target * logsigmoid(logits) + (1 - target) * logsigmoid(-logits))


def hard_targets(logits: Tensor, pairs: Sequence[Pair], labels: Sequence[int]) -> Tensor:
    """Return [Q, K], one-hot at the class of a query's last pair; zero for queries without one."""
    hard = torch.zeros_like(logits)
    for q, g in pairs:
        hard[q] = 0
        hard[q, labels[g]] = 1
    return hard


def focal(logits: Tensor, pairs: Sequence[Pair], labels: Sequence[int]) -> Tensor:
    """Return the summed sigmoid focal loss (alpha 0.25, gamma 2) of one image; the modulating factor has a gradient."""
    hard = hard_targets(logits, pairs, labels)
    p = logits.sigmoid()
    miss = hard * (1 - p) + (1 - hard) * p
    balance = hard * 0.25 + (1 - hard) * 0.75
    return (balance * miss**2 * binary_cross_entropy(logits, hard)).sum()


def assignment_quality(
    logits: Tensor,
    pairs: Sequence[Pair],
    labels: Sequence[int],
    quality: Sequence[float],
    *,
    negative_gamma: float = 1.5,
    factor: float = 0.25,
) -> Tensor:
    """Return the summed quality-aware loss (Eq. 8) of one image.

    A query paired with several targets is hard-labelled by its last pair only, but keeps the quality of every pair as
    soft target of that pair's class. ``quality`` has one number a pair.
    """
    hard = hard_targets(logits, pairs, labels)
    soft = hard.clone()
    for (q, g), s in zip(pairs, quality, strict=True):
        soft[q, labels[g]] = s
    p = logits.detach().sigmoid()
    weight = torch.where(hard == 1, torch.ones_like(p), p**negative_gamma)
    return factor * (weight * binary_cross_entropy(logits, soft)).sum()


def iou_aware(
    logits: Tensor,
    pairs: Sequence[Pair],
    labels: Sequence[int],
    quality: Sequence[float],
    *,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Return the summed classification loss of Relation-DETR of one image, entry by entry.

    A query's last pair decides which class is its target and weighs the quality; every other entry weighs
    (1 - alpha) p^gamma, also where an earlier pair left its quality. ``quality`` has one number a pair.
    """
    target_class: dict[int, int] = {}
    soft: dict[tuple[int, int], float] = {}
    for (q, g), s in zip(pairs, quality, strict=True):
        target_class[q] = labels[g]
        soft[q, labels[g]] = s
    loss = logits.sum() * 0
    for q, row in enumerate(logits):
        for c, logit in enumerate(row):
            t = soft.get((q, c), 0.0)
            weight = t if target_class.get(q) == c else (1 - focal_alpha) * logit.detach().sigmoid() ** focal_gamma
            loss = loss - weight * (t * logsigmoid(logit) + (1 - t) * logsigmoid(-logit))
    return loss


def box_l1(boxes: Tensor, pairs: Sequence[Pair], image: Image) -> Tensor:
    """Return the summed L1 distance of the pairs of one image."""
    return boxes.sum() * 0 + sum(l1(boxes[q].unbind(), image.boxes[g]) for q, g in pairs)


def box_giou(boxes: Tensor, pairs: Sequence[Pair], image: Image) -> Tensor:
    """Return the sum of 1 - GIoU over the pairs of one image."""
    return boxes.sum() * 0 + sum(1 - giou(boxes[q].unbind(), image.boxes[g]) for q, g in pairs)


def evaluate(inputs: Mapping[str, Tensor], images: Sequence[Image], criterion: Criterion) -> Report:
    """Return every loss of a batch.

    Args:
        inputs: main/logits [L, B, Q, K], main/boxes, aux/logits [N, L, B, Q, K], aux/boxes, enc/logits [B, S, K],
            enc/boxes, enc/anchors; any of the groups may be missing.
        images: the B images.
        criterion: which loss is used where.
    """
    inputs = {name: tensor.double() for name, tensor in inputs.items()}
    num_targets = max(1, sum(len(image.labels) for image in images))
    values: dict[str, Tensor] = {}
    weights: dict[str, float] = {}

    def add(suffix: str, terms: Sequence[Tensor], term_weights: Weights) -> None:
        kinds = ("loss_ce", "loss_bbox", "loss_giou")
        numbers = (term_weights.classification, term_weights.l1, term_weights.giou)
        for kind, term, number in zip(kinds, terms, numbers, strict=True):
            values[kind + suffix] = term / num_targets
            weights[kind + suffix] = float(number)

    num_layers = len(inputs["main/logits"])
    for layer in range(num_layers):
        layer_suffix = "" if layer == num_layers - 1 else f"_{layer}"
        primary_logits, primary_boxes = inputs["main/logits"][layer], inputs["main/boxes"][layer]
        one_to_one = [_one_to_one(primary_logits[b], primary_boxes[b], image, 2.0) for b, image in enumerate(images)]
        terms = [torch.zeros((), dtype=torch.float64)] * 3
        for b, image in enumerate(images):
            quality = [iou(primary_boxes[b, q].tolist(), image.boxes[g]) for q, g in one_to_one[b]]
            part = _terms(primary_logits[b], primary_boxes[b], one_to_one[b], image, quality, criterion.quality_aware)
            terms = [whole + p for whole, p in zip(terms, part, strict=True)]
        add(layer_suffix, terms, criterion.primary)

        for n, rules in enumerate(criterion.branches):
            logits, boxes = inputs["aux/logits"][n, layer], inputs["aux/boxes"][n, layer]
            terms = [torch.zeros((), dtype=torch.float64)] * 3
            for b, image in enumerate(images):
                score = one_to_many.matching_scores(
                    logits[b].tolist(), boxes[b].tolist(), image.labels, image.boxes, criterion.class_weight
                )
                pairs = one_to_many.assign(score, rules)
                if criterion.unite:
                    pairs = one_to_many.unite(one_to_one[b], pairs)
                quality = [score[g][q] for q, g in pairs]
                part = _terms(logits[b], boxes[b], pairs, image, quality, criterion.quality_aware)
                terms = [whole + p for whole, p in zip(terms, part, strict=True)]
            add(layer_suffix + criterion.suffixes[n], terms, criterion.branch)

    if "enc/logits" in inputs:
        terms = [torch.zeros((), dtype=torch.float64)] * 3
        for b, image in enumerate(images):
            foreground = Image([0] * len(image.labels), image.boxes)
            logits, boxes = inputs["enc/logits"][b], inputs["enc/boxes"][b]
            pairs = _one_to_one(logits, inputs["enc/anchors"][b], foreground, 0.0)
            part = _terms(logits, boxes, pairs, foreground, [], False)
            terms = [whole + p for whole, p in zip(terms, part, strict=True)]
        add("_enc", terms, criterion.encoder)
    return Report(values, weights)


def _one_to_one(logits: Tensor, boxes: Tensor, image: Image, class_weight: float) -> list[Pair]:
    cost = hungarian.cost_matrix(logits.tolist(), boxes.tolist(), image.labels, image.boxes, class_weight=class_weight)
    return hungarian.solve(cost)


def _terms(
    logits: Tensor, boxes: Tensor, pairs: list[Pair], image: Image, quality: list[float], quality_aware: bool
) -> list[Tensor]:
    if quality_aware:
        classification = assignment_quality(logits, pairs, image.labels, quality)
    else:
        classification = focal(logits, pairs, image.labels)
    return [classification, box_l1(boxes, pairs, image), box_giou(boxes, pairs, image)]
