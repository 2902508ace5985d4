"""Matching of repeated targets with ranked soft targets, against the plain re-statement and worked by hand."""

from __future__ import annotations

from math import exp

import pytest
import torch
from pydantic import ValidationError

from lora_detr.matchers.invariants import check_assignment
from lora_detr.matchers.many_to_one import ManyToOne, ManyToOneConfig
from lora_detr.matchers.scores import overlap_score, target_logits
from lora_detr.structures import Assignment, PaddedTargets, Prediction, Target
from tests.reference import hungarian, many_to_one
from tests.unit.matchers.random_problems import thousand_problems


def test_ranks_worked_by_hand() -> None:
    """Qualities 0.2, 0.8, 0.8 of queries 3, 2, 1: ranks 2, 1, 0; the second target has query 0 alone."""
    quality = torch.tensor([[[[0.1, 0.8, 0.8, 0.2], [0.5, 0.0, 0.0, 0.0]]]])
    mask = torch.tensor([[[[True, True, True], [False, True, False]]]])
    solved = Assignment(torch.tensor([[[[3, 2, 1], [0, 0, 0]]]]), torch.zeros(1, 1, 2, 3), mask)
    ranked = ManyToOne(3, tau=1.5).ranked(solved, quality)
    assert ranked.query[0, 0, 0].tolist() == [1, 2, 3] and ranked.query[0, 0, 1, 0] == 0
    assert ranked.mask[0, 0].tolist() == [[True, True, True], [True, False, False]]
    expected = [[0.8, 0.8 * exp(-1 / 1.5), 0.2 * exp(-2 / 1.5)], [0.5, 0.0, 0.0]]
    assert ranked.score[0, 0].tolist() == [pytest.approx(row) for row in expected]


def test_quality_worked_by_hand() -> None:
    """Probability 0.5 and IoU 0.6, and IoU 0: 0.5^0.25 * 0.6^0.75 = 0.573, and the least, 0.01."""
    boxes = torch.tensor([[[[0.625, 0.5, 0.5, 0.5], [0.05, 0.05, 0.1, 0.1]]]])
    target = Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([0]), 0, (64, 64))
    quality = ManyToOne(2).score(Prediction(torch.zeros(1, 1, 2, 1), boxes), PaddedTargets.from_targets([target]))
    assert quality[0, 0, 0].tolist() == pytest.approx([0.5**0.25 * 0.6**0.75, 0.01])


def test_copies_take_half_the_queries_of_each_image() -> None:
    """8 queries: 1, 2 and 3 targets have 4, 2 and 1 copies; an image's limit is its own."""
    images = [Target(torch.rand(n, 4), torch.zeros(n, dtype=torch.int64), n, (64, 64)) for n in (3, 1, 2, 0)]
    prediction = Prediction(torch.randn(1, 4, 8, 2), torch.rand(1, 4, 8, 4))
    assignment = ManyToOne(4)(prediction, PaddedTargets.from_targets(images))
    assert assignment.mask.sum((0, 2, 3)).tolist() == [3, 4, 4, 0]


def test_equals_the_plain_rules_on_1000_problems() -> None:
    """Where costs are equal, as on a grid, another assignment may cost the same; soft targets belong to the pairs."""
    for number, problem in enumerate(thousand_problems()):
        prediction, targets = problem.prediction, problem.targets
        k, alpha, tau = ((2, 0.25, 1.5), (4, 0.5, 0.7), (1, 1.0, 1.5))[number % 3]
        matcher = ManyToOne(k, alpha, tau)
        assignment = matcher(prediction, targets)
        check_assignment(assignment, targets, problem.num_queries, at_most=k, unique_queries=True)
        costs, overlap = matcher.cost(prediction, targets), overlap_score(prediction, targets)
        probability = target_logits(prediction.logits, targets.labels).sigmoid()
        for g in range(20):
            for b, count in enumerate(targets.counts):
                cost, found = costs[g, b, :count].T.tolist(), assignment.pairs(g, b)
                expected = hungarian.solve_repeated(cost, k, 0.5)
                assert len(found) == len(expected)
                assert hungarian.total(cost, found) == pytest.approx(hungarian.total(cost, expected))
                assert number % 2 or found == expected
                rows = probability[g, b, :count].tolist(), overlap[g, b, :count].tolist()
                soft = many_to_one.weigh(found, *rows, alpha, tau)
                mask = assignment.mask[g, b]
                pairs = zip(assignment.query[g, b][mask].tolist(), mask.nonzero()[:, 0].tolist(), strict=True)
                published = dict(zip(pairs, assignment.score[g, b][mask].tolist(), strict=True))
                assert published == pytest.approx(soft, rel=1e-4)


def test_settings() -> None:
    config = ManyToOneConfig()
    assert config.describe() == "many-to-one k=2 alpha=0.25 tau=1.5"
    assert (config.build().repeats, config.build().share) == (2, 0.5)
    assert ManyToOne.stacked([config.build()] * 2, 3).options == config.build().options
    for wrong in ({"k": 0}, {"alpha": 1.1}, {"tau": 0.0}):
        with pytest.raises(ValidationError):
            ManyToOneConfig.model_validate(wrong)
