"""The criterion: match every source to the targets, compute all losses of a step on stacks, and sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from lora_detr.errors import NumericalError
from lora_detr.losses.branch_matching import BranchMatching
from lora_detr.losses.config import Classification, CriterionConfig, EncoderLossConfig, TermWeights
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import KINDS, LossKey, LossReport, report_of
from lora_detr.losses.source import Source, all_terms, source_keys
from lora_detr.losses.stacking import boxes_refined, flatten_branches, repeated_on_layers, stacked
from lora_detr.matchers import Hungarian
from lora_detr.matchers.hungarian import NonFiniteCostError, Problem, solve_problems
from lora_detr.structures import (
    Assignment,
    BranchOutput,
    DetectorOutput,
    EncoderOutput,
    Matcher,
    OwnLoss,
    PaddedTargets,
    Prediction,
)

MIDDLE = 0.5
"""Point of a run that is assumed where nobody knows it."""


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
class _Row:
    """How the queries of one group, or one list of proposals, are supervised.

    Attributes:
        title: what error messages call it.
        classification: loss of the class logits.
        weights: of the terms.
        matcher: one to one at least cost, or one to many by score; None where the pairs are known beforehand.
        quality: soft target of a pair.
        repeats: how often each target is matched; the normaliser counts all of them.
        proposals: which proposals, classes and boxes count; None for queries that the decoder refines.
        duplicate_weight: see ``Source``.
        match_last: the last layer is matched, and its pairs hold for all layers.
    """

    title: str
    classification: Classification
    weights: TermWeights
    matcher: Hungarian | BranchMatching | None
    quality: Literal["score", "iou"] = "iou"
    repeats: int = 1
    proposals: EncoderLossConfig | None = None
    duplicate_weight: float = 0.0
    match_last: bool = False


@dataclass(frozen=True)
class _Stack:
    """Predictions that wait for their pairs.

    Attributes:
        row: how they are supervised.
        keys: names of the terms.
        prediction: logits [G, B, Q, K], boxes [G, B, Q, 4].
        labels: int64 [B, T].
        cost: [G, B, T, Q] where the row matches at least cost. Costs leave their matchers unsolved, because scipy works
            on the host: solved one by one, every stack of a step would make the GPU wait for a copy of its own.
        known: pairs that the row does not match.
        copies: how often each target stands in ``known``.
        priority: see ``Criterion.match``.
        scale: factor on the weights.
        weights: in place of those of the row.
        second_best: see ``Source``.
        layers: the one group of ``cost`` is matched, and its pairs hold for so many.
    """

    row: _Row
    keys: tuple[LossKey, ...]
    prediction: Prediction
    labels: Tensor
    cost: Tensor | None = None
    known: Assignment | None = None
    copies: int = 1
    priority: Tensor | None = None
    scale: float = 1.0
    weights: TermWeights | None = None
    second_best: float = 1.0
    layers: int = 1


class Criterion(nn.Module):
    """Losses of the primary path, the branches, the encoder and all query groups; knows nothing of ranks.

    Args:
        num_layers: L.
        config: settings of all sources.
        branch_names: of the branches, in order; used in reports.
        branch_matchers: one for each branch; any object that satisfies ``Matcher``, or ``ScoredMatcher`` where
            ``merge_one_to_one`` is on, since that compares scores.
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
        primary, branch = config.primary, config.branch
        denoising, hybrid, dac = config.denoising, config.hybrid, config.dac
        # A row for everything that is supervised. Query groups stand by their names, and proposals of a group as
        # ``NAME_encoder``.
        self.rows = {
            "primary": _Row(
                "primary path",
                primary.classification,
                primary.weights,
                primary.matcher.build(),
                duplicate_weight=primary.duplicate_weight,
                match_last=primary.match_layers == "last",
            ),
            "branches": _Row(
                "branches",
                branch.classification,
                branch.weights,
                BranchMatching(branch_matchers, num_layers, branch),
                branch.quality,
            ),
            "encoder": _encoder_row("encoder", config.encoder),
            "denoising": _Row("denoising queries", denoising.classification, denoising.weights, None),
            "hybrid": _Row(
                "hybrid queries",
                hybrid.classification or primary.classification,
                hybrid.weights,
                hybrid.matcher.build(),
                repeats=hybrid.repeats,
            ),
            "hybrid_encoder": _encoder_row("hybrid encoder", hybrid.encoder, hybrid.repeats),
            "dac": _Row(
                "queries without self-attention",
                dac.classification or primary.classification,
                dac.weights,
                BranchMatching([dac.matcher.build()], num_layers),
                "score",
            ),
        }
        self.branch_keys = source_keys([(name, layer) for name in branch_names for layer in range(num_layers)])
        self.branch_scale = branch.factor * (branch.denoising_factor if has_denoising else 1.0)
        self.branch_scale /= max(len(branch_names), 1)

    def forward(
        self,
        output: DetectorOutput,
        branches: BranchOutput | None,
        targets: PaddedTargets,
        normaliser: Normaliser,
        priority: Tensor | None = None,
        progress: float = MIDDLE,
    ) -> LossReport:
        """Compute all losses: ``match``, then ``losses``."""
        return self.losses(self.match(output, branches, targets, normaliser, priority, progress), targets, output)

    def match(
        self,
        output: DetectorOutput,
        branches: BranchOutput | None,
        targets: PaddedTargets,
        normaliser: Normaliser,
        priority: Tensor | None = None,
        progress: float = MIDDLE,
    ) -> list[Source]:
        """Match everything that is supervised.

        Args:
            output: of the detector.
            branches: of the side-car; None when there are no branches.
            targets: of the batch.
            normaliser: what losses are divided by (``CriterionConfig.normalise``).
            priority: float [N * L, B, Q] in place of the random draw that caps one-to-many candidates.
            progress: share of the run that is behind, in [0, 1], for settings that change over it.

        Returns:
            The primary path first, then the branches, if there are any, the encoder, and query groups; the branches
            alone where the detector brings a loss of its own.

        Raises:
            NonFiniteMatchError: a matching cost is not finite; names source, layer and image.
        """
        branch = self.config.branch
        stacks: list[_Stack] = []
        if output.own_loss is None:
            primary = self._queries("primary", [layer.prediction for layer in output.layers], targets, progress)
            stacks.append(replace(primary, scale=branch.primary_share(progress)))
        if branches is not None:
            stacks.append(
                _Stack(
                    self.rows["branches"],
                    self.branch_keys,
                    flatten_branches(branches, self._references(branches, output)),
                    targets.labels,
                    priority=priority,
                    scale=self.branch_scale * branch.share(progress),
                    weights=branch.weights_at(progress),
                    second_best=branch.second_best_at(progress),
                )
            )
        stacks += self._proposals("encoder", output.encoder, targets, progress)
        for group in output.groups:
            stacks.append(self._queries(group.name, group.layers, targets, progress, group.pairs, group.copies))
            stacks += self._proposals(f"{group.name}_encoder", group.encoder, targets, progress)

        primary_pairs = None
        sources = []
        for stack, solved in zip(stacks, _solve(stacks, targets), strict=True):
            row, matcher = stack.row, stack.row.matcher
            if isinstance(matcher, BranchMatching):
                pairs = matcher(stack.prediction, targets, primary_pairs, stack.priority, solved)
                one_to_one = matcher.uses_queries_once
            else:
                (pairs,), one_to_one = solved if stack.known is None else [stack.known], True
            if row is self.rows["primary"]:
                primary_pairs = pairs
            sources.append(
                Source(
                    stack.keys,
                    stack.prediction,
                    pairs,
                    stack.labels,
                    row.classification,
                    quality=row.quality,
                    one_to_one=one_to_one,
                    weights=stack.weights or row.weights,
                    normaliser=normaliser.of(row.repeats) * stack.copies,
                    scale=stack.scale,
                    second_best=stack.second_best,
                    duplicate_weight=row.duplicate_weight,
                )
            )
        return sources

    def losses(self, sources: Sequence[Source], targets: PaddedTargets, output: DetectorOutput) -> LossReport:
        """Return the losses of what ``match`` gave, and the detector's own, if it brings one.

        Raises:
            NonFiniteMatchError: the detector's own loss refuses predictions that are not finite.
        """
        if output.own_loss is None:
            return self._computed(sources, targets)
        own = report_of(_own(output))
        return own.joined(self._computed(sources, targets)) if sources else own

    def _computed(self, sources: Sequence[Source], targets: PaddedTargets) -> LossReport:
        values = all_terms(sources, targets, self.config.constants)
        values = values / values.new_tensor([source.normaliser for source in sources for _ in source.keys])
        weights = tuple(weight for source in sources for weight in source.term_weights())
        weighted = values * values.new_tensor(weights)
        keys = tuple(key for source in sources for key in source.keys)
        return LossReport(weighted.sum(), keys, values.detach(), weights, weighted)

    def _queries(
        self,
        name: str,
        layers: Sequence[Prediction],
        targets: PaddedTargets,
        progress: float,
        known: Assignment | None = None,
        copies: int = 1,
    ) -> _Stack:
        """Stack the layers of the primary path or of a query group; ``known`` [1, B, T, k] holds for every layer."""
        row, prediction = self.rows[name], stacked(layers)
        keys = source_keys([(name, layer) for layer in range(self.num_layers)])
        if known is not None:
            known = repeated_on_layers(known, self.num_layers)
        cost, repeated = None, 1
        if isinstance(row.matcher, Hungarian):
            matched_by = prediction
            if row.match_last:
                matched_by, repeated = stacked(layers[-1:]), self.num_layers
            cost = row.matcher.cost(matched_by, targets, progress)
        elif isinstance(row.matcher, BranchMatching) and row.matcher.reads_references:
            prediction = replace(prediction, reference=boxes_refined([layer.reference for layer in layers]))
        return _Stack(row, keys, prediction, targets.labels, cost, known, copies, layers=repeated)

    def _references(self, branches: BranchOutput, output: DetectorOutput) -> Tensor | None:
        """Return the boxes that branches refine, [N * L, B, Q, 4], where a matcher of theirs reads them."""
        matching = self.rows["branches"].matcher
        assert isinstance(matching, BranchMatching)
        if not matching.reads_references:
            return None
        count = len(branches.layers[0].boxes)
        return boxes_refined([layer.reference for layer in output.layers], count)

    def _proposals(
        self, name: str, encoder: EncoderOutput | None, targets: PaddedTargets, progress: float
    ) -> list[_Stack]:
        """Return the proposals that are supervised, all or those that became queries, as a stack of one group."""
        if encoder is None:
            return []
        row = self.rows[name]
        config, matcher = row.proposals, row.matcher
        assert config is not None and isinstance(matcher, Hungarian)
        logits, boxes, anchors = encoder.prediction.logits, encoder.prediction.boxes, encoder.anchors
        if config.tokens == "selected":
            assert encoder.selected is not None
            index = encoder.selected[..., None]
            logits = logits.gather(1, index.expand(-1, -1, logits.shape[-1]))
            boxes, anchors = (part.gather(1, index.expand(-1, -1, 4)) for part in (boxes, anchors))
        prediction = Prediction(logits[None], boxes[None])
        matched_by = anchors[None] if config.match_to == "anchors" else prediction.boxes
        labelled = targets.with_single_class() if config.classes == "foreground" else targets
        # A cost that reads no label takes the targets whose corners are computed already.
        labels = labelled if matcher.reads_classes(progress) else targets
        cost = matcher.cost(Prediction(prediction.logits, matched_by), labels, progress)
        return [_Stack(row, source_keys([(name, None)]), prediction, labelled.labels, cost)]


def _own(output: DetectorOutput) -> OwnLoss:
    assert output.own_loss is not None
    try:
        return output.own_loss()
    except ValueError as error:  # of boxes that are not finite
        finite = [part.flatten(1).isfinite().all(1) for part in (output.prediction.logits, output.prediction.boxes)]
        spoilt = (~(finite[0] & finite[1])).nonzero().flatten().tolist()
        if not spoilt:
            raise
        raise NonFiniteMatchError("detector's own loss", spoilt[0]) from error


def _encoder_row(title: str, config: EncoderLossConfig, repeats: int = 1) -> _Row:
    matcher = config.matcher.build()
    return _Row(title, config.classification, config.weights, matcher, repeats=repeats, proposals=config)


def _solve(stacks: Sequence[_Stack], targets: PaddedTargets) -> list[list[Assignment]]:
    """Return what is matched at least cost, for each stack; one copy to the host for all costs."""
    problems = [_problems(stack, targets) for stack in stacks]
    waiting = [(stack, problem) for stack, own in zip(stacks, problems, strict=True) for problem in own]
    try:
        solved = iter(solve_problems([problem for _, problem in waiting], targets))
    except NonFiniteCostError as error:
        stack, problem = waiting[error.problem]
        where = stack.row.title
        if isinstance(stack.row.matcher, BranchMatching):
            key = stack.keys[(problem.start + error.group) * len(KINDS)]
            where = f"predictions of {key.source} at layer {key.layer}"
        elif stack.row.proposals is None:
            where = f"{where} at layer {error.group}"
        raise NonFiniteMatchError(where, error.image) from error
    return [
        [repeated_on_layers(next(solved), stack.layers) for _ in own]
        for stack, own in zip(stacks, problems, strict=True)
    ]


def _problems(stack: _Stack, targets: PaddedTargets) -> list[Problem]:
    """Return what of a stack is matched at least cost, which may be one branch of several."""
    if isinstance(stack.row.matcher, BranchMatching):
        return stack.row.matcher.problems(stack.prediction, targets)
    return [] if stack.cost is None else [Problem(stack.cost, stack.row.repeats)]
