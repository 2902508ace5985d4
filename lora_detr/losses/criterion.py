"""The criterion: match every source to the targets, compute all losses of a step on stacks, and sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_detr.errors import NumericalError
from lora_detr.losses.branch_matching import BranchMatching
from lora_detr.losses.config import CriterionConfig, EncoderLossConfig
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossKey, LossReport
from lora_detr.losses.source import Source, all_terms, source_keys
from lora_detr.matchers import Hungarian
from lora_detr.matchers.hungarian import NonFiniteCostError, solve_together
from lora_detr.structures import (
    Assignment,
    BranchOutput,
    DetectorOutput,
    EncoderOutput,
    Matcher,
    PaddedTargets,
    Prediction,
    QueryGroupOutput,
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


@dataclass(frozen=True)
class _Problem:
    """A one-to-one matching of a stack: what it is called, its cost [G, B, T, Q], and copies of each target."""

    name: str
    cost: Tensor
    repeats: int = 1
    has_layers: bool = True


@dataclass(frozen=True)
class _Proposals:
    """The proposals that are supervised, as a stack of one, and the boxes [1, B, S, 4] that targets are matched to."""

    stack: Prediction
    matched_by: Tensor


@dataclass(frozen=True)
class _Group:
    """A query group as it is supervised: its layers as one stack, and its proposals, None where it has none."""

    output: QueryGroupOutput
    stack: Prediction
    proposals: _Proposals | None


class Criterion(nn.Module):
    """Losses of the primary path, the branches, the encoder and all query groups; knows nothing of ranks.

    Args:
        num_layers: L.
        config: settings of all sources.
        branch_names: of the branches, in order; used in reports.
        branch_matchers: one for each branch; any object that satisfies ``Matcher``. Consecutive ``TopK`` with equal
            options run as one stack. ``merge_one_to_one`` needs ``TopK``, since it compares scores.
        has_denoising: the detector has denoising queries, which scales the branches' losses.
    """

    def __init__(
        self,
        num_layers: int,
        config: CriterionConfig,
        branch_names: Sequence[str] = (),
        branch_matchers: Sequence[Matcher] = (),
        has_denoising: bool = False,
    ) -> None:
        super().__init__()
        if len(branch_names) != len(branch_matchers):
            raise ValueError(f"{len(branch_names)} branch names but {len(branch_matchers)} branch matchers")
        self.num_layers = num_layers
        self.config = config
        self.primary_matcher = config.primary.matcher.build()
        self.encoder_matcher = config.encoder.matcher.build()
        self.hybrid_matcher = config.hybrid.matcher.build()
        self.hybrid_encoder_matcher = config.hybrid.encoder.matcher.build()
        self.branch_matching = BranchMatching(branch_matchers, num_layers, config.branch)
        self.dac_matching = BranchMatching([config.dac.matcher.build()], num_layers)
        self.branch_keys = source_keys([(name, layer) for name in branch_names for layer in range(num_layers)])
        branch = config.branch
        self.branch_scale = branch.factor * (branch.denoising_factor if has_denoising else 1.0)
        self.branch_scale /= max(len(branch_names), 1)

    def forward(
        self,
        output: DetectorOutput,
        branches: BranchOutput | None,
        targets: PaddedTargets,
        normaliser: Normaliser,
        priority: Tensor | None = None,
        branch_share: float = 1.0,
    ) -> LossReport:
        """Compute all losses: ``match``, then ``losses``."""
        return self.losses(self.match(output, branches, targets, normaliser, priority, branch_share), targets)

    def match(
        self,
        output: DetectorOutput,
        branches: BranchOutput | None,
        targets: PaddedTargets,
        normaliser: Normaliser,
        priority: Tensor | None = None,
        branch_share: float = 1.0,
    ) -> list[Source]:
        """Match everything that is supervised.

        Args:
            output: of the detector.
            branches: of the side-car; None when there are no branches.
            targets: of the batch.
            normaliser: what losses are divided by (``CriterionConfig.normalise``).
            priority: float [N * L, B, Q] in place of the random draw that caps one-to-many candidates.
            branch_share: factor on the weights of the branches at this point of the run (``BranchLossConfig.share``).

        Returns:
            The primary path first, then the branches, if there are any, the encoder, and query groups.

        Raises:
            NonFiniteMatchError: a matching cost is not finite; names source, layer and image.
        """
        config = self.config
        primary = stacked([layer.prediction for layer in output.layers])
        problems = [_Problem("primary path", self.primary_matcher.cost(primary, targets))]
        proposals = None if output.encoder is None else _supervised(output.encoder, config.encoder)
        if proposals is not None:
            problems.append(_encoder_problem("encoder", proposals, config.encoder, self.encoder_matcher, targets))
        groups = [self._group(group) for group in output.groups]
        for group in groups:
            if group.output.name == "hybrid":
                problems += self._hybrid_problems(group, targets)
        matched = _solve(problems, targets)

        sources = [
            Source(
                self._layer_keys("primary"),
                primary,
                matched["primary path"],
                targets.labels,
                config.primary.classification,
                quality="iou",
                one_to_one=True,
                weights=config.primary.weights,
                normaliser=normaliser.of(),
            )
        ]
        if branches is not None:
            stack = _flatten_branches(branches)
            sources.append(
                Source(
                    self.branch_keys,
                    stack,
                    self.branch_matching(stack, targets, matched["primary path"], priority),
                    targets.labels,
                    config.branch.classification,
                    quality=config.branch.quality,
                    one_to_one=self.branch_matching.uses_queries_once,
                    weights=config.branch.weights,
                    normaliser=normaliser.of(),
                    scale=self.branch_scale * branch_share,
                )
            )
        if proposals is not None:
            sources.append(
                _encoder_source("encoder", proposals, config.encoder, matched["encoder"], targets, normaliser.of())
            )
        for group in groups:
            sources += self._group_sources(group, matched, targets, normaliser)
        return sources

    def losses(self, sources: Sequence[Source], targets: PaddedTargets) -> LossReport:
        """Return the losses of what ``match`` gave."""
        values = all_terms(sources, targets.boxes, self.config.constants)
        values = values / values.new_tensor([source.normaliser for source in sources for _ in source.keys])
        weights = tuple(weight for source in sources for weight in source.term_weights())
        weighted = values * values.new_tensor(weights)
        keys = tuple(key for source in sources for key in source.keys)
        return LossReport(weighted.sum(), keys, values.detach(), weights, weighted)

    def _layer_keys(self, name: str) -> tuple[LossKey, ...]:
        return source_keys([(name, layer) for layer in range(self.num_layers)])

    def _group(self, output: QueryGroupOutput) -> _Group:
        # Hybrid queries alone have an encoder of their own.
        proposals = None if output.encoder is None else _supervised(output.encoder, self.config.hybrid.encoder)
        return _Group(output, stacked(output.layers), proposals)

    def _hybrid_problems(self, group: _Group, targets: PaddedTargets) -> list[_Problem]:
        config = self.config.hybrid
        problems = [_Problem("hybrid queries", self.hybrid_matcher.cost(group.stack, targets), config.repeats)]
        if group.proposals is not None:
            matcher = self.hybrid_encoder_matcher
            problems.append(
                _encoder_problem("hybrid encoder", group.proposals, config.encoder, matcher, targets, config.repeats)
            )
        return problems

    def _group_sources(
        self,
        group: _Group,
        matched: dict[str, Assignment],
        targets: PaddedTargets,
        normaliser: Normaliser,
    ) -> list[Source]:
        """Return the sources of a query group."""
        output, stack = group.output, group.stack
        keys = self._layer_keys(output.name)
        if output.name == "denoising":
            known = output.pairs
            assert known is not None
            denoising = self.config.denoising
            shape = (self.num_layers, -1, -1, -1)
            pairs = Assignment(known.query.expand(shape), known.score.expand(shape), known.mask.expand(shape))
            return [
                Source(
                    keys,
                    stack,
                    pairs,
                    targets.labels,
                    denoising.classification,
                    quality="iou",
                    one_to_one=True,
                    weights=denoising.weights,
                    normaliser=normaliser.of() * output.copies,
                )
            ]
        if output.name == "dac":
            dac = self.config.dac
            return [
                Source(
                    keys,
                    stack,
                    self.dac_matching(stack, targets, matched["primary path"], None),
                    targets.labels,
                    dac.classification or self.config.primary.classification,
                    quality="score",
                    one_to_one=False,
                    weights=dac.weights,
                    normaliser=normaliser.of(),
                )
            ]
        assert output.name == "hybrid", output.name
        hybrid = self.config.hybrid
        divisor = normaliser.of(hybrid.repeats)
        sources = [
            Source(
                keys,
                stack,
                matched["hybrid queries"],
                targets.labels,
                hybrid.classification or self.config.primary.classification,
                quality="iou",
                one_to_one=True,
                weights=hybrid.weights,
                normaliser=divisor,
            )
        ]
        if group.proposals is not None:
            pairs = matched["hybrid encoder"]
            sources.append(_encoder_source("hybrid_encoder", group.proposals, hybrid.encoder, pairs, targets, divisor))
        return sources


def _solve(problems: Sequence[_Problem], targets: PaddedTargets) -> dict[str, Assignment]:
    """Solve all one-to-one problems of a step after one copy to the host."""
    try:
        solved = solve_together(
            [problem.cost for problem in problems], targets, [problem.repeats for problem in problems]
        )
    except NonFiniteCostError as error:
        problem = problems[error.problem]
        where = f"{problem.name} at layer {error.group}" if problem.has_layers else problem.name
        raise NonFiniteMatchError(where, error.image) from error
    return {problem.name: assignment for problem, assignment in zip(problems, solved, strict=True)}


def _supervised(encoder: EncoderOutput, config: EncoderLossConfig) -> _Proposals:
    """Return all proposals, or those that became queries, as the settings say."""
    logits, boxes, anchors = encoder.prediction.logits, encoder.prediction.boxes, encoder.anchors
    if config.tokens == "selected":
        assert encoder.selected is not None
        index = encoder.selected[..., None]
        logits = logits.gather(1, index.expand(-1, -1, logits.shape[-1]))
        boxes, anchors = (part.gather(1, index.expand(-1, -1, 4)) for part in (boxes, anchors))
    matched_by = anchors if config.match_to == "anchors" else boxes
    return _Proposals(Prediction(logits[None], boxes[None]), matched_by[None])


def _encoder_problem(
    name: str,
    proposals: _Proposals,
    config: EncoderLossConfig,
    matcher: Hungarian,
    targets: PaddedTargets,
    repeats: int = 1,
) -> _Problem:
    if config.classes == "foreground" and matcher.class_cost != 0:
        targets = targets.with_single_class()
    matched_by = Prediction(proposals.stack.logits, proposals.matched_by)
    return _Problem(name, matcher.cost(matched_by, targets), repeats, has_layers=False)


def _encoder_source(
    name: str,
    proposals: _Proposals,
    config: EncoderLossConfig,
    assignment: Assignment,
    targets: PaddedTargets,
    normaliser: float,
) -> Source:
    labels = targets.with_single_class().labels if config.classes == "foreground" else targets.labels
    return Source(
        source_keys([(name, None)]),
        proposals.stack,
        assignment,
        labels,
        config.classification,
        quality="iou",
        one_to_one=True,
        weights=config.weights,
        normaliser=normaliser,
    )


def stacked(predictions: Sequence[Prediction]) -> Prediction:
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
