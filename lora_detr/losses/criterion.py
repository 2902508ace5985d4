"""The criterion: match every source to the targets, compute all losses of a step on stacks, and sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.errors import NumericalError
from lora_detr.losses.boxes import BoxLosses, box_losses
from lora_detr.losses.classification import class_targets, focal_loss, quality_loss
from lora_detr.losses.config import ClassificationConfig, CriterionConfig, TermWeights
from lora_detr.losses.report import KINDS, LossKey, LossReport
from lora_detr.matchers.conflicts import merge_one_to_one, without_duplicates
from lora_detr.matchers.hungarian import NonFiniteCostError, solve_together
from lora_detr.matchers.topk import TopK
from lora_detr.structures import (
    Assignment,
    BranchOutput,
    DetectorOutput,
    EncoderOutput,
    Matcher,
    PaddedTargets,
    Prediction,
)


class NonFiniteMatchError(NumericalError):
    """A matching cost is NaN or infinite, so no assignment exists.

    Args:
        where: source and layer.
        image: index of the image in the batch.
    """

    def __init__(self, where: str, image: int) -> None:
        super().__init__(f"matching cost of the {where} is not finite for image {image} of the batch", code="N06")
        self.where, self.image = where, image


class Criterion(nn.Module):
    """Losses of the primary path, the branches and the encoder; knows nothing of ranks.

    Args:
        num_layers: L.
        config: settings of all sources.
        branch_names: of the branches, in order; used in reports.
        branch_matchers: one for each branch; any object that satisfies ``Matcher``. Consecutive ``TopK`` with equal
            options run as one stack. ``merge_one_to_one`` needs ``TopK``, since it compares scores.
    """

    def __init__(
        self,
        num_layers: int,
        config: CriterionConfig,
        branch_names: Sequence[str] = (),
        branch_matchers: Sequence[Matcher] = (),
    ) -> None:
        super().__init__()
        if len(branch_names) != len(branch_matchers):
            raise ValueError(f"{len(branch_names)} branch names but {len(branch_matchers)} branch matchers")
        if config.branch.merge_one_to_one and not all(isinstance(matcher, TopK) for matcher in branch_matchers):
            raise ValueError("loss.branch.merge_one_to_one compares scores and needs TopK matchers")
        self.num_layers = num_layers
        self.config = config
        self.primary_matcher = config.primary.matcher.build()
        self.encoder_matcher = config.encoder.matcher.build()
        self.branch_stacks = _stack_matchers(branch_matchers, num_layers)
        layers = range(num_layers)
        self.primary_keys = _keys([("primary", layer) for layer in layers])
        self.encoder_keys = _keys([("encoder", None)])
        self.branch_keys = _keys([(name, layer) for name in branch_names for layer in layers])

    def forward(
        self,
        output: DetectorOutput,
        branches: BranchOutput | None,
        targets: PaddedTargets,
        normaliser: Tensor | float,
        priority: Tensor | None = None,
    ) -> LossReport:
        """Compute all losses.

        Args:
            output: of the detector.
            branches: of the side-car; None when there are no branches.
            targets: of the batch.
            normaliser: what every loss is divided by (``CriterionConfig.normalise``).
            priority: float [N * L, B, Q] in place of the random draw that caps one-to-many candidates.

        Raises:
            NonFiniteMatchError: a matching cost is not finite; names source, layer and image.
        """
        primary = _stack([layer.prediction for layer in output.layers])
        costs = [self.primary_matcher.cost(primary, targets)]
        if output.encoder is not None:
            costs.append(self._encoder_cost(output.encoder, targets))
        try:
            assignments = solve_together(costs, targets)
        except NonFiniteCostError as error:
            where = "encoder" if error.problem == 1 else f"primary path at layer {error.group}"
            raise NonFiniteMatchError(where, error.image) from error

        config = self.config
        quality: Literal["score", "iou"] | None = "iou" if config.primary.classification == "quality" else None
        sources = [_Source(primary, assignments[0], targets.labels, quality, one_to_one=True)]
        keys, weights = list(self.primary_keys), _weights(config.primary.weights, self.num_layers)
        if branches is not None:
            stack = _flatten_branches(branches)
            pairs = self._match_branches(stack, targets, assignments[0], priority)
            quality = config.branch.quality if config.branch.classification == "quality" else None
            sources.append(_Source(stack, pairs, targets.labels, quality, one_to_one=False))
            count = len(self.branch_keys) // (3 * self.num_layers)
            weights += _weights(config.branch.weights, self.num_layers * count, scale=1 / count)
            keys += self.branch_keys
        if output.encoder is not None:
            foreground = targets.with_single_class().labels
            stack = _stack([output.encoder.prediction])
            sources.append(_Source(stack, assignments[1], foreground, None, one_to_one=True))
            weights += _weights(config.encoder.weights, 1)
            keys += self.encoder_keys
        boxes = box_losses([(source.prediction.boxes, source.assignment) for source in sources], targets.boxes)
        sums = [_terms(source, found, config.constants) for source, found in zip(sources, boxes, strict=True)]
        values = torch.cat(sums) / normaliser
        total = (values * values.new_tensor(weights)).sum()
        return LossReport(total, tuple(keys), values.detach(), tuple(weights))

    def _encoder_cost(self, encoder: EncoderOutput, targets: PaddedTargets) -> Tensor:
        if self.encoder_matcher.class_cost != 0:
            targets = targets.with_single_class()
        boxes = encoder.anchors if self.config.encoder.match_to == "anchors" else encoder.prediction.boxes
        return self.encoder_matcher.cost(Prediction(encoder.prediction.logits[None], boxes[None]), targets)

    def _match_branches(
        self, stack: Prediction, targets: PaddedTargets, one_to_one: Assignment, priority: Tensor | None
    ) -> Assignment:
        """Match the stack of all branches [N * L, B, Q, ...], branch by branch or several at once."""
        parts = []
        start = 0
        for matcher, groups in self.branch_stacks:
            part = Prediction(stack.logits[start : start + groups], stack.boxes[start : start + groups])
            if isinstance(matcher, TopK):
                score = matcher.score(part, targets)
                chosen = None if priority is None else priority[start : start + groups]
                pairs = matcher.match(score, targets.mask, chosen)
                if self.config.branch.merge_one_to_one:
                    pairs = merge_one_to_one(pairs, one_to_one, score)
            else:
                pairs = matcher(part, targets)
            parts.append(pairs)
            start += groups
        pairs = _join(parts)
        if self.config.branch.duplicates == "clean":
            pairs = without_duplicates(pairs, stack.logits.shape[-2])
        return pairs


def _stack_matchers(matchers: Sequence[Matcher], num_layers: int) -> list[tuple[Matcher, int]]:
    """Join consecutive ``TopK`` of equal options; return matchers with the number of groups each handles."""
    stacks: list[tuple[Matcher, int]] = []
    run: list[TopK] = []
    for matcher in [*matchers, None]:
        fits = isinstance(matcher, TopK) and len(matcher.k) == 1 and (not run or run[0].options == matcher.options)
        if run and not fits:
            stacks.append((TopK.stacked(run, num_layers), num_layers * len(run)))
            run = []
        if isinstance(matcher, TopK) and len(matcher.k) == 1:
            run.append(matcher)
        elif matcher is not None:
            stacks.append((matcher, num_layers))
    return stacks


@dataclass(frozen=True)
class _Source:
    """One stack that is supervised: what was predicted, its pairs, its labels [B, T], and what quality means."""

    prediction: Prediction
    assignment: Assignment
    labels: Tensor
    quality: Literal["score", "iou"] | None
    one_to_one: bool


def _terms(source: _Source, boxes: BoxLosses, constants: ClassificationConfig) -> Tensor:
    """Return the sums of all terms of a stack, [G * 3], group by group in the order of ``KINDS``."""
    soft = {None: None, "iou": boxes.iou, "score": source.assignment.score}[source.quality]
    logits = source.prediction.logits
    queries, classes = logits.shape[-2:]
    spread = class_targets(source.assignment, source.labels, soft, queries, classes, one_to_one=source.one_to_one)
    if source.quality is None:
        classification = focal_loss(logits, spread.hard, constants.focal_alpha, constants.focal_gamma)
    else:
        classification = quality_loss(logits, spread, constants.negative_gamma, constants.quality_factor)
    return torch.stack((classification, boxes.l1, boxes.giou), dim=-1).flatten()


def _keys(places: Sequence[tuple[str, int | None]]) -> tuple[LossKey, ...]:
    return tuple(LossKey(source, layer, kind) for source, layer in places for kind in KINDS)


def _weights(weights: TermWeights, groups: int, scale: float = 1.0) -> list[float]:
    return [weights.classification * scale, weights.l1 * scale, weights.giou * scale] * groups


def _stack(predictions: Sequence[Prediction]) -> Prediction:
    """Stack predictions [B, Q, ...] to [G, B, Q, ...]."""
    return Prediction(
        torch.stack([item.logits for item in predictions]), torch.stack([item.boxes for item in predictions])
    )


def _flatten_branches(branches: BranchOutput) -> Prediction:
    """Stack the layers' predictions [N, B, Q, ...] to [N * L, B, Q, ...], branch by branch."""
    return Prediction(
        torch.stack([layer.logits for layer in branches.layers], dim=1).flatten(0, 1),
        torch.stack([layer.boxes for layer in branches.layers], dim=1).flatten(0, 1),
    )


def _join(parts: Sequence[Assignment]) -> Assignment:
    """Concatenate assignments along their groups, padding each to the largest k."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.query.shape[-1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, width - tensor.shape[-1]))

    return replace(
        parts[0],
        query=torch.cat([padded(part.query) for part in parts]),
        score=torch.cat([padded(part.score) for part in parts]),
        mask=torch.cat([padded(part.mask) for part in parts]),
    )
