"""Settings against one object found several times: each alone, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from lora_detr.losses.classification import class_overlap
from lora_detr.losses.config import (
    BranchLossConfig,
    Classification,
    ClassificationConfig,
    CriterionConfig,
    PrimaryLossConfig,
    TermWeights,
)
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport
from lora_detr.losses.source import Source, all_terms, source_keys
from lora_detr.matchers import HungarianConfig, TopKConfig
from lora_detr.structures import Assignment, PaddedTargets, Prediction, Target
from tests.unit.losses.step_outputs import Step, make_step

LAYERS = 3
LN2 = math.log(2)

# One object of class 0; the first query is on it, the second overlaps it by 1/3, the third is elsewhere.
OBJECT = Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), 7, (100, 100))
BOXES = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.7, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]]])


def class_loss(
    logit: float, assignment: Assignment, classification: Classification, classes: int = 1, **settings: float
) -> float:
    """Return the classification loss of the three queries when every logit is the same."""
    prediction = Prediction(torch.full((1, 1, 3, classes), logit), BOXES)
    targets = PaddedTargets.from_targets([OBJECT])
    keys = source_keys([("primary", 0)])
    source = Source(
        keys,
        prediction,
        assignment,
        targets.labels,
        classification,
        "score",
        one_to_one=True,
        weights=TermWeights(),
        normaliser=1.0,
        **settings,
    )
    return all_terms([source], targets, ClassificationConfig())[0].item()


def pairs(*scores: float) -> Assignment:
    """Return the object paired with queries 0, 1, ... with the given scores."""
    query = torch.arange(len(scores)).view(1, 1, 1, -1)
    return Assignment(query, torch.tensor(scores).view(1, 1, 1, -1), torch.ones_like(query, dtype=torch.bool))


def test_overlap_counts_only_with_objects_of_the_class() -> None:
    targets = PaddedTargets.from_targets([OBJECT])
    found = class_overlap(Prediction(torch.zeros(1, 1, 3, 2), BOXES), targets)
    torch.testing.assert_close(found, torch.tensor([[[[1.0, 0.0], [1 / 3, 0.0], [0.0, 0.0]]]]))


def test_overlap_with_padding_is_none() -> None:
    targets = PaddedTargets.from_targets([OBJECT, Target(torch.zeros(0, 4), torch.zeros(0).long(), 8, (100, 100))])
    boxes = torch.zeros(1, 2, 3, 4)  # as padded targets are
    assert not class_overlap(Prediction(torch.zeros(1, 2, 3, 2), boxes), targets).any()


@pytest.mark.parametrize(
    ("classification", "negative"),
    [("focal", 0.75 * 0.25 * LN2), ("quality", 0.25 * 0.5**1.5 * LN2), ("iou-aware", 0.75 * 0.25 * LN2)],
)
def test_a_duplicate_weighs_more_than_background(classification: Classification, negative: float) -> None:
    """With weight 3 and IoU 1/3 the second query's loss at the object's class doubles; nothing else changes."""
    plain = class_loss(0.0, pairs(0.8), classification, classes=2)
    weighted = class_loss(0.0, pairs(0.8), classification, classes=2, duplicate_weight=3.0)
    assert weighted - plain == pytest.approx(negative, rel=1e-5)


def test_soft_targets_of_all_but_the_best_pair_are_scaled() -> None:
    """Logit 1: BCE against t is ln(1 + e) - t; the quality loss weighs pairs 1 and the negative p^1.5."""
    entropy = math.log(1 + math.e)
    background = (1 / (1 + math.exp(-1))) ** 1.5 * entropy
    for factor in (1.0, 0.2):
        expected = 0.25 * (entropy - 0.8 + entropy - factor * 0.6 + background)
        assert class_loss(1.0, pairs(0.8, 0.6), "quality", second_best=factor) == pytest.approx(expected, rel=1e-5)


def test_of_equal_pairs_the_first_is_the_best() -> None:
    entropy = math.log(1 + math.e)
    background = (1 / (1 + math.exp(-1))) ** 1.5 * entropy
    expected = 0.25 * (entropy - 0.6 + entropy - 0.5 * 0.6 + background)
    assert class_loss(1.0, pairs(0.6, 0.6), "quality", second_best=0.5) == pytest.approx(expected, rel=1e-5)


def test_soft_targets_are_needed_to_scale_them() -> None:
    with pytest.raises(ValidationError, match="needs soft targets"):
        BranchLossConfig(classification="focal", second_best=(1.0, 0.2))


def made_step() -> Step:
    return make_step(3, layers=LAYERS, branches=2, counts=[3, 0, 5], queries=12, classes=2)


def criterion_with(branch: BranchLossConfig | None = None, primary: PrimaryLossConfig | None = None) -> Criterion:
    config = CriterionConfig(branch=branch or BranchLossConfig(), primary=primary or PrimaryLossConfig())
    matchers = [TopKConfig(k=k, positive_fraction=None).build() for k in (6, 2)]
    return Criterion(LAYERS, config, ["branch0", "branch1"], matchers)


def report_of(criterion: Criterion, progress: float) -> LossReport:
    step = made_step()
    return criterion(step.output, step.branches, step.targets, Normaliser(8), progress=progress)


@pytest.mark.parametrize(("progress", "branches"), [(0.0, 0.8), (0.5, 0.45), (1.0, 0.1)])
def test_weight_shifts_from_branches_to_the_primary_path(progress: float, branches: float) -> None:
    plain = report_of(criterion_with(), progress)
    shifted = report_of(criterion_with(BranchLossConfig(shift=(0.8, 0.1))), progress)
    for before, after in zip(plain.terms(), shifted.terms(), strict=True):
        factor = {"primary": 2 * (1 - branches), "encoder": 1.0}.get(before.key.source, 2 * branches)
        assert (after.key, after.value) == (before.key, before.value)
        assert after.weight == pytest.approx(factor * before.weight)


def test_an_even_shift_changes_no_bit() -> None:
    plain = report_of(criterion_with(), 0.3)
    assert torch.equal(report_of(criterion_with(BranchLossConfig(shift=(0.5, 0.5))), 0.3).total, plain.total)


@pytest.mark.parametrize(("progress", "counts"), [(0.0, 0), (0.49, 0), (0.5, 1), (1.0, 1)])
def test_branches_have_box_losses_only_at_first(progress: float, counts: int) -> None:
    plain = report_of(criterion_with(), progress)
    later = report_of(criterion_with(BranchLossConfig(class_from=0.5)), progress)
    for before, after in zip(plain.terms(), later.terms(), strict=True):
        left_out = before.key.source.startswith("branch") and before.key.kind == "class"
        assert after.weight == (counts * before.weight if left_out else before.weight)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.5, 0.6), (1.0, 0.2)])
def test_second_best_pairs_fade_over_the_run_in_branches_alone(progress: float, factor: float) -> None:
    step, criterion = made_step(), criterion_with(BranchLossConfig(second_best=(1.0, 0.2)))
    primary, branches, encoder = criterion.match(
        step.output, step.branches, step.targets, Normaliser(8), progress=progress
    )
    assert branches.second_best == pytest.approx(factor)
    assert (primary.second_best, encoder.second_best) == (1.0, 1.0)


def test_all_layers_take_the_pairs_of_the_last_one() -> None:
    step = made_step()
    own = criterion_with().match(step.output, None, step.targets, Normaliser(8))[0].assignment
    last = criterion_with(primary=PrimaryLossConfig(match_layers="last"))
    found = last.match(step.output, None, step.targets, Normaliser(8))[0].assignment
    assert found.query.shape == own.query.shape
    for image in range(3):
        assert {tuple(found.pairs(layer, image)) for layer in range(LAYERS)} == {tuple(own.pairs(LAYERS - 1, image))}
        assert len(found.pairs(0, image)) == step.targets.counts[image]
    assert any(own.pairs(0, image) != own.pairs(LAYERS - 1, image) for image in range(3))  # so that it says something


def test_duplicates_weigh_more_in_the_primary_path_alone() -> None:
    plain = report_of(criterion_with(), 0.5)
    weighted = report_of(criterion_with(primary=PrimaryLossConfig(duplicate_weight=4.0)), 0.5)
    changed = {b.key for b, a in zip(plain.terms(), weighted.terms(), strict=True) if a.value != b.value}
    assert changed == {key for key in plain.keys if key.source == "primary" and key.kind == "class"}


# Two objects and two queries: probabilities 0.9 and 0.5, IoU 0.5 and 1 with the one object that is near them.
NEAR = PaddedTargets.from_targets([Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), 7, (100, 100))])
HALF = torch.tensor([[[[0.5, 0.5, 0.4, 0.2], [0.5, 0.5, 0.4, 0.4]]]])
SURE = torch.tensor([0.9, 0.5]).logit().view(1, 1, 2, 1)


@pytest.mark.parametrize(
    ("metric", "values"),
    [("aligned", [0.9 * 0.5**4, 0.5]), ("score", [0.3 * 0.9 + 0.7 * 0.5, 0.3 * 0.5 + 0.7])],
)
def test_pairs_are_compared_by_the_metric_once_it_counts(metric: str, values: list[float]) -> None:
    matcher = HungarianConfig.model_validate({"metric": metric, "metric_from": 0.75}).build()
    prediction = Prediction(SURE, HALF)
    plain = HungarianConfig().build().cost(prediction, NEAR)
    assert torch.equal(matcher.cost(prediction, NEAR, progress=0.7), plain)
    torch.testing.assert_close(
        matcher.cost(prediction, NEAR, progress=0.75), -torch.tensor(values).view(1, 1, 1, 2), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("metric", ["aligned", "score"])
def test_without_any_overlap_the_cost_decides(metric: str) -> None:
    """Equal probabilities and no overlap: all scores are equal, and the nearer query is the cheaper one."""
    boxes = torch.tensor([[[[0.1, 0.1, 0.05, 0.05], [0.2, 0.2, 0.05, 0.05]]]])
    matcher = HungarianConfig.model_validate({"metric": metric}).build()
    assert matcher(Prediction(torch.zeros(1, 1, 2, 1), boxes), NEAR).pairs(0, 0) == [(1, 0)]


def test_a_metric_that_reads_classes_is_told_the_right_ones() -> None:
    assert not HungarianConfig(class_cost=0).build().reads_classes(1.0)
    late = HungarianConfig(class_cost=0, metric="aligned", metric_from=0.5).build()
    assert (late.reads_classes(0.4), late.reads_classes(0.5)) == (False, True)
