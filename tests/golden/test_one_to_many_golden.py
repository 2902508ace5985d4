"""One-to-many assignment, its union with one-to-one, and the random cap, pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.matchers import HungarianConfig, TopK
from lora_detr.matchers.conflicts import merge_one_to_one
from lora_detr.matchers.invariants import check_assignment
from lora_detr.structures import Prediction
from tests.golden.store import case, cases, images_of, pairs, require, tensors_of
from tests.golden.systems import padded

NAME = "one_to_many"


def matcher_of(entry: dict[str, Any]) -> TopK:
    return TopK([entry["k"]], [entry["tau"]], [entry["alpha_class"]])


def prediction_of(tensors: dict[str, Tensor]) -> Prediction:
    return Prediction(tensors["pred_logits"][None], tensors["pred_boxes"][None])


@pytest.mark.parametrize("group", ["cases", "merge_cases", "subsample_cases"])
def test_values_exist(group: str) -> None:
    require(cases(NAME, group), f"{NAME}, {group}")


@pytest.mark.parametrize("name", cases(NAME))
def test_pairs_and_scores(name: str) -> None:
    entry, tensors = case(NAME, name), tensors_of(NAME, name)
    targets, matcher, prediction = padded(images_of(tensors)), matcher_of(entry), prediction_of(tensors)
    assignment, score = matcher(prediction, targets), matcher.score(prediction, targets)
    check_assignment(assignment, targets, entry["num_queries"], at_most=entry["k"])
    for b, image in enumerate(entry["images"]):
        assert assignment.pairs(0, b) == pairs(image["pairs"])
        count = targets.counts[b]
        expected = tensors[f"img{b}/score"].reshape(count, entry["num_queries"])
        torch.testing.assert_close(score[0, b, :count], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", cases(NAME))
def test_a_stack_gives_what_each_group_gives_alone(name: str) -> None:
    entry, tensors = case(NAME, name), tensors_of(NAME, name)
    targets, prediction = padded(images_of(tensors)), prediction_of(tensors)
    settings = [(entry["k"], entry["tau"], entry["alpha_class"]), (entry["k"] + 2, 0.9, 0.5), (1, 0.0, 0.1)]
    stack = TopK(*[list(column) for column in zip(*settings, strict=True)], positive_fraction=None)
    doubled = Prediction(prediction.logits.repeat(3, 1, 1, 1), prediction.boxes.repeat(3, 1, 1, 1))
    together = stack(doubled, targets)
    for group, (k, threshold, class_weight) in enumerate(settings):
        alone = TopK([k], [threshold], [class_weight], positive_fraction=None)(prediction, targets)
        for b in range(len(targets.counts)):
            assert together.pairs(group, b) == alone.pairs(0, b)


@pytest.mark.parametrize("name", cases(NAME, "merge_cases"))
def test_union_with_one_to_one(name: str) -> None:
    entry, tensors = case(NAME, name, "merge_cases"), tensors_of(NAME, name)
    targets, matcher, prediction = padded(images_of(tensors)), matcher_of(entry), prediction_of(tensors)
    one_to_one = HungarianConfig().build()(prediction, targets)
    score = matcher.score(prediction, targets)
    one_to_many = matcher.match(score, targets.mask)
    merged = merge_one_to_one(one_to_many, one_to_one, score)
    check_assignment(merged, targets, entry["num_queries"], at_most=entry["k"] + 1, unique_queries=True)
    for b, image in enumerate(entry["images"]):
        assert one_to_one.pairs(0, b) == pairs(image["one_to_one"])
        assert one_to_many.pairs(0, b) == pairs(image["one_to_many_in_emission_order"])
        assert merged.pairs(0, b) == pairs(image["merged"])


@pytest.mark.parametrize("name", cases(NAME, "subsample_cases"))
def test_random_cap(name: str) -> None:
    entry, tensors = case(NAME, name, "subsample_cases"), tensors_of(NAME, name)
    targets, matcher, prediction = padded(images_of(tensors)), matcher_of(entry), prediction_of(tensors)
    score = matcher.score(prediction, targets)[0]  # [B, T, Q]
    for run in require(entry["runs"], "seeds of the random cap"):
        torch.manual_seed(run["seed"])
        priority = torch.zeros(1, len(targets.counts), entry["num_queries"])
        for b, count in enumerate(targets.counts):
            rows = score[b, :count]
            positive = rows.amax(0) >= entry["tau"]
            positive[rows.argmax(-1)] = True
            candidates = positive.nonzero()[:, 0]
            number = len(candidates)
            assert count == 0 or number == entry.get("num_positive", number)
            # The candidates that a permutation names first are kept: they get the highest priority.
            priority[0, b, candidates[torch.randperm(number)]] = number - torch.arange(number, dtype=torch.float32)
            torch.randperm(entry["num_queries"] - number)  # the official code draws one for the negatives as well
        assignment = matcher(prediction, targets, priority)
        expected = run["pairs"] if len(targets.counts) == 1 else [pair for image in run["pairs"] for pair in image]
        found = [pair for b in range(len(targets.counts)) for pair in assignment.pairs(0, b)]
        assert sorted(found) == pairs(expected)
