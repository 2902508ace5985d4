"""Costs and pairs of one-to-one matching, of decoder outputs and of proposals."""

from __future__ import annotations

import pytest
import torch

from lora_detr.matchers import Hungarian
from lora_detr.matchers.hungarian import solve_together
from lora_detr.matchers.invariants import check_assignment
from lora_detr.structures import Prediction
from tests.golden.store import case, cases, images_of, pairs, require, tensors_of
from tests.golden.systems import padded

NAME = "hungarian"
VARIANTS = [(name, variant) for name in cases(NAME) for variant in case(NAME, name)["variants"]]


def test_values_exist() -> None:
    require(VARIANTS, NAME)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_cost_and_pairs(name: str, variant: str) -> None:
    entry, tensors = case(NAME, name), tensors_of(NAME, name)
    settings = entry["variants"][variant]
    targets = padded(images_of(tensors))
    prediction = Prediction(tensors["pred_logits"][None], tensors["pred_boxes"][None])
    matcher = Hungarian(
        settings["cost_class"], settings["cost_bbox"], settings["cost_giou"], settings["class_cost_eps"]
    )
    cost, assignment = matcher.cost(prediction, targets), matcher(prediction, targets)
    check_assignment(assignment, targets, entry["num_queries"], at_most=1, unique_queries=True)
    for b, count in enumerate(targets.counts):
        expected = tensors[f"{variant}/img{b}/cost"]
        torch.testing.assert_close(cost[0, b, :count].T.reshape_as(expected), expected, rtol=1e-5, atol=1e-5)
        assert assignment.pairs(0, b) == pairs(settings["pairs"][b])
        assert len(settings["pairs"][b]) == min(count, entry["num_queries"])


@pytest.mark.parametrize("name", cases(NAME))
def test_problems_solved_together_stay_apart(name: str) -> None:
    entry, tensors = case(NAME, name), tensors_of(NAME, name)
    targets = padded(images_of(tensors))
    prediction = Prediction(tensors["pred_logits"][None], tensors["pred_boxes"][None])
    variants = list(entry["variants"].values())
    costs = [
        Hungarian(v["cost_class"], v["cost_bbox"], v["cost_giou"], v["class_cost_eps"]).cost(prediction, targets)
        for v in variants
    ]
    for settings, assignment in zip(variants, solve_together(costs, targets), strict=True):
        for b in range(len(targets.counts)):
            assert assignment.pairs(0, b) == pairs(settings["pairs"][b])


RELATION = "hungarian_relation"
RELATION_VARIANTS = [(name, variant) for name in cases(RELATION) for variant in case(RELATION, name)["variants"]]


def test_relation_values_exist() -> None:
    require([variant for _, variant in RELATION_VARIANTS if "x" in variant], "matching with repeated targets")


@pytest.mark.parametrize(("name", "variant"), RELATION_VARIANTS)
def test_relation_family(name: str, variant: str) -> None:
    entry, tensors = case(RELATION, name), tensors_of(RELATION, name)
    settings = entry["variants"][variant]
    repeats, count = settings["targets_repeated"], len(tensors["gt_labels"])
    targets = padded([(tensors["gt_labels"], tensors["gt_boxes"])])
    prediction = Prediction(tensors["pred_logits"][None, None], tensors["pred_boxes"][None, None])
    matcher = Hungarian(
        settings["cost_class"], settings["cost_bbox"], settings["cost_giou"], settings["class_cost_eps"]
    )
    cost = matcher.cost(prediction, targets)
    (assignment,) = solve_together([cost], targets, [repeats])
    check_assignment(assignment, targets, entry["num_queries"], at_most=repeats, unique_queries=True)
    assert int(assignment.mask.sum()) == min(count * repeats, entry["num_queries"])
    total = -float(assignment.score[assignment.mask].double().sum())
    assert total == pytest.approx(settings["total_cost"], rel=1e-5)
    if f"{variant}/cost" in tensors:
        torch.testing.assert_close(cost[0, 0].T, tensors[f"{variant}/cost"], rtol=1e-5, atol=1e-5)
    # Swaps of equal cost are possible between repeated targets; there, the total decides.
    if repeats == 1:
        assert assignment.pairs(0, 0) == pairs(settings["pairs"])
    else:
        assert sorted(query for query, _ in assignment.pairs(0, 0)) == sorted(query for query, _ in settings["pairs"])
