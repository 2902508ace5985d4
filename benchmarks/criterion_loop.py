"""The total of a training step by loops over images, layers, branches and pairs, from parts of `tests/reference`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.criterion_case import Case
from lora_detr.losses.config import Classification, ClassificationConfig, EncoderLossConfig, TermWeights
from lora_detr.structures import EncoderOutput, Prediction, QueryGroupOutput
from tests.reference import losses
from tests.reference.boxes import iou
from tests.unit.losses.step_outputs import branch_pairs, cheapest

Pair = tuple[int, int]


class Loop:
    """The total of a case by loops over images, layers, branches and pairs, in float64.

    Args:
        case: what is supervised, and how.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.loss = case, case.config.loss

    def total(self) -> Tensor:
        """Return the total."""
        targets = self.case.step.images
        images = [losses.Image(target.labels.tolist(), target.boxes.tolist()) for target in targets]
        return torch.stack([part for b, image in enumerate(images) for part in self._image(b, image)]).sum()

    def _image(self, b: int, image: losses.Image) -> Iterator[Tensor]:
        """Yield the weighted and normalised loss of every source of an image."""
        output, loss, divisor = self.case.step.output, self.loss, self.case.normaliser.of()
        for layer, published in enumerate(output.layers):
            one = _of_image(published.prediction, b)
            pairs = cheapest(one.logits, one.boxes, image, loss.primary.matcher)
            yield self._terms(one, pairs, image, loss.primary.classification, loss.primary.weights) / divisor
            for part in self._branches(b, layer, image, pairs):
                yield part / divisor
        if output.encoder is not None:
            yield self._encoder(output.encoder, b, image, loss.encoder) / divisor
        for group in output.groups:
            yield from self._group(group, b, image)

    def _branches(self, b: int, layer: int, image: losses.Image, one_to_one: list[Pair]) -> Iterator[Tensor]:
        """Yield the loss of each branch of a layer."""
        side_car, config, layers = self.case.step.branches, self.loss.branch, len(self.case.step.output.layers)
        for n, branch in enumerate(self.case.config.branches):
            assert side_car is not None
            one = _of_image(side_car.layers[layer], n, b)
            priority = self.case.priority[n * layers + layer, b].tolist()
            pairs, quality = branch_pairs(one.logits, one.boxes, one_to_one, image, config, branch.matcher, priority)
            scale = self.case.criterion.branch_scale
            yield scale * self._terms(one, pairs, image, config.classification, config.weights, quality)

    def _encoder(
        self, encoder: EncoderOutput, b: int, image: losses.Image, config: EncoderLossConfig, repeats: int = 1
    ) -> Tensor:
        one, anchors = _of_image(encoder.prediction, b), encoder.anchors[b]
        if config.tokens == "selected":
            assert encoder.selected is not None
            kept = encoder.selected[b]
            one, anchors = Prediction(one.logits[kept], one.boxes[kept]), anchors[kept]
        if config.classes == "foreground":
            image = losses.Image([0] * len(image.labels), image.boxes)
        matched = anchors if config.match_to == "anchors" else one.boxes
        pairs = cheapest(one.logits, matched, image, config.matcher, repeats)
        return self._terms(one, pairs, image, config.classification, config.weights)

    def _group(self, group: QueryGroupOutput, b: int, image: losses.Image) -> Iterator[Tensor]:
        """Yield the loss of every layer of a query group, and of its proposals."""
        denoising, hybrid, normaliser = self.loss.denoising, self.loss.hybrid, self.case.normaliser
        known = None if group.pairs is None else group.pairs.pairs(0, b)
        divisor = normaliser.of(hybrid.repeats) if known is None else normaliser.of() * group.copies
        for prediction in group.layers:
            one = _of_image(prediction, b)
            if known is not None:
                yield self._terms(one, known, image, denoising.classification, denoising.weights) / divisor
            else:
                pairs = cheapest(one.logits, one.boxes, image, hybrid.matcher, hybrid.repeats)
                kind = hybrid.classification or self.loss.primary.classification
                yield self._terms(one, pairs, image, kind, hybrid.weights) / divisor
        if group.encoder is not None:
            yield self._encoder(group.encoder, b, image, hybrid.encoder, hybrid.repeats) / divisor

    def _terms(
        self,
        one: Prediction,
        pairs: list[Pair],
        image: losses.Image,
        kind: Classification,
        weights: TermWeights,
        quality: list[float] | None = None,
    ) -> Tensor:
        """Return the weighted sum of the three terms; without a quality it is the IoU of each pair."""
        if quality is None:
            quality = [iou(one.boxes[q].tolist(), image.boxes[t]) for q, t in pairs]
        constants = self.loss.constants
        if kind == "focal":
            value = losses.focal(one.logits, pairs, image.labels)
        elif kind == "quality":
            gamma, factor = constants.negative_gamma, constants.quality_factor
            value = losses.assignment_quality(
                one.logits, pairs, image.labels, quality, negative_gamma=gamma, factor=factor
            )
        else:
            value = iou_aware(one.logits, pairs, image.labels, quality, constants)
        l1, giou = losses.box_l1(one.boxes, pairs, image), losses.box_giou(one.boxes, pairs, image)
        return weights.classification * value + weights.l1 * l1 + weights.giou * giou


def _of_image(prediction: Prediction, *place: int) -> Prediction:
    """Return the predictions [Q, ...] at a place of the leading axes, in float64."""
    return Prediction(prediction.logits[place].double(), prediction.boxes[place].double())


def iou_aware(
    logits: Tensor, pairs: list[Pair], labels: list[int], quality: list[float], constants: ClassificationConfig
) -> Tensor:
    """Return what ``losses.iou_aware`` returns, whose loop over every class of every query would take hours here."""
    hard, soft = losses.hard_targets(logits, pairs, labels), torch.zeros_like(logits)
    for (q, t), value in zip(pairs, quality, strict=True):
        soft[q, labels[t]] = value
    negative = (1 - constants.focal_alpha) * logits.detach().sigmoid() ** constants.focal_gamma
    return (torch.where(hard == 1, soft, negative) * losses.binary_cross_entropy(logits, soft)).sum()
