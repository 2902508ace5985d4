"""The plain re-statements agree with the reference values, so that they may serve as oracles elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import store
from tests.reference import deform_attn, hungarian, lora, losses, one_to_many
from tests.reference.boxes import giou, iou, l1

LOSSES = [name for name in store.names("losses_*") if "relation" not in store.load_json(name)["config"]]
ATTENTION = store.cases("deform_attn")


def rules_of(entry: dict[str, Any], k: int | None = None) -> one_to_many.Rules:
    """Return the assigner's parameters as a case states them."""
    return one_to_many.Rules(k=entry["k"] if k is None else k, threshold=entry["tau"])


def scores_of(tensors: dict[str, Tensor], entry: dict[str, Any]) -> list[list[list[float]]]:
    """Return score[image][target][query] of a case."""
    return [
        one_to_many.matching_scores(
            tensors["pred_logits"][b].tolist(),
            tensors["pred_boxes"][b].tolist(),
            labels.tolist(),
            boxes.tolist(),
            entry["alpha_class"],
        )
        for b, (labels, boxes) in enumerate(store.images_of(tensors))
    ]


def criterion_of(entry: dict[str, Any]) -> losses.Criterion:
    """Return the losses of a configuration, by the tables of the specification."""
    config: str = entry["config"]
    num_branches = len(entry["k_per_branch"])
    share = 1 / max(num_branches, 1)
    return losses.Criterion(
        quality_aware=config.startswith("lora"),
        branches=tuple(rules_of(entry, k) for k in entry["k_per_branch"]),
        class_weight=entry["alpha_class"],
        unite=entry["use_indices_merge"],
        suffixes=("_o2m",) if config.startswith("ms") else tuple(f"_o2m_lora_{n}" for n in range(num_branches)),
        primary=losses.Weights(1 if num_branches else 2, 5, 2),
        branch=losses.Weights(2 * share, 5 * share, 2 * share),
    )


def test_every_subject_is_present() -> None:
    for items, what in (
        (store.cases("one_to_many"), "one-to-many assignment"),
        (store.cases("one_to_many", "merge_cases"), "the union of assignments"),
        (store.cases("one_to_many", "subsample_cases"), "the random cap"),
        (store.cases("hungarian"), "one-to-one assignment"),
        (LOSSES, "losses"),
        (ATTENTION, "deformable attention"),
    ):
        store.require(items, what)


@pytest.mark.parametrize("name", store.cases("one_to_many"))
def test_one_to_many(name: str) -> None:
    entry, tensors = store.case("one_to_many", name), store.tensors_of("one_to_many", name)
    for b, (score, expected) in enumerate(zip(scores_of(tensors, entry), entry["images"], strict=True)):
        if score:
            torch.testing.assert_close(torch.tensor(score), tensors[f"img{b}/score"], rtol=0, atol=1e-6)
        pairs = one_to_many.assign(score, rules_of(entry))
        assert sorted(pairs) == store.pairs(expected["pairs"])
        assert pairs == [tuple(pair) for pair in expected["pairs_in_emission_order"]]
        positives = one_to_many.positive_queries(score, rules_of(entry)) if score else []
        assert len(positives) == expected["num_positive_after_threshold_and_forcing"]


@pytest.mark.parametrize("name", store.cases("one_to_many", "merge_cases"))
def test_union(name: str) -> None:
    entry = store.case("one_to_many", name, "merge_cases")
    tensors = store.tensors_of("one_to_many", name)
    for score, expected in zip(scores_of(tensors, entry), entry["images"], strict=True):
        pairs = one_to_many.assign(score, rules_of(entry))
        assert pairs == [tuple(pair) for pair in expected["one_to_many_in_emission_order"]]
        merged = one_to_many.unite(store.pairs(expected["one_to_one"]), pairs)
        assert merged == [tuple(pair) for pair in expected["merged"]]


@pytest.mark.parametrize("name", store.cases("one_to_many", "subsample_cases"))
def test_random_cap_by_permutation_and_by_priority(name: str) -> None:
    entry = store.case("one_to_many", name, "subsample_cases")
    (score,) = scores_of(store.tensors_of("one_to_many", name), entry)
    positives = one_to_many.positive_queries(score, rules_of(entry))
    assert len(positives) == entry["num_positive"]
    for run in entry["runs"]:
        torch.manual_seed(run["seed"])
        permutation = torch.randperm(len(positives)).tolist()
        pairs = one_to_many.assign(score, rules_of(entry), permutation=permutation)
        assert sorted(pairs) == store.pairs(run["pairs"])
        priority = [0.0] * len(score[0])
        for rank, position in enumerate(permutation):
            priority[positives[position]] = float(len(positives) - rank)
        assert one_to_many.assign(score, rules_of(entry), priority=priority) == pairs


def test_options_of_the_assigner() -> None:
    score = [[0.5, 0.9, 0.3, 0.0], [0.6, 0.7, 0.2, 0.1]]  # queries 0 -> 1, 1 -> 0, 2 -> 0, 3 -> 1

    def pairs(**options: Any) -> list[tuple[int, int]]:
        merged = {"k": 2, "threshold": 0.6, "positive_fraction": None} | options
        return sorted(one_to_many.assign(score, one_to_many.Rules(**merged)))

    assert pairs() == [(1, 0), (1, 1)]  # target 1 is owed one query and takes the best of its row
    assert pairs(candidates="strict") == [(0, 1), (1, 0)]
    assert pairs(strict_threshold=True) == [(1, 0)]
    assert pairs(threshold=0.95) == [(1, 0)]  # the query forced for target 1 prefers target 0
    assert pairs(threshold=0.95, force_best=False) == []
    assert pairs(threshold=0.95, candidates="strict") == []
    with pytest.raises(ValueError, match="exceed the cap of 1"):
        pairs(positive_fraction=0.25)


@pytest.mark.parametrize("name", store.cases("hungarian"))
def test_hungarian(name: str) -> None:
    entry, tensors = store.case("hungarian", name), store.tensors_of("hungarian", name)
    for variant, settings in entry["variants"].items():
        for b, (labels, boxes) in enumerate(store.images_of(tensors)):
            cost = hungarian.cost_matrix(
                tensors["pred_logits"][b].tolist(),
                tensors["pred_boxes"][b].tolist(),
                labels.tolist(),
                boxes.tolist(),
                class_weight=settings["cost_class"],
                l1_weight=settings["cost_bbox"],
                giou_weight=settings["cost_giou"],
                epsilon=settings["class_cost_eps"],
            )
            expected = tensors[f"{variant}/img{b}/cost"]
            torch.testing.assert_close(torch.tensor(cost).reshape_as(expected), expected, rtol=1e-5, atol=1e-5)
            assert hungarian.solve(cost) == store.pairs(settings["pairs"][b])


@pytest.mark.parametrize(("num_queries", "num_targets"), [(1, 1), (4, 2), (2, 4), (5, 5), (3, 0)])
def test_brute_force_equals_the_solver(num_queries: int, num_targets: int) -> None:
    for _ in range(5):
        cost = torch.rand(num_queries, num_targets).tolist()
        assert hungarian.brute_force(cost) == hungarian.solve(cost)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    entry, tensors = store.load_json(name), store.load_tensors(name)
    inputs = {
        key: value.clone().requires_grad_(f"grad/{key}" in tensors)
        for key, value in tensors.items()
        if re.match("(main|aux|enc)/", key)
    }
    images = [losses.Image(labels.tolist(), boxes.tolist()) for labels, boxes in store.images_of(tensors)]
    report = losses.evaluate(inputs, images, criterion_of(entry))

    expected = {key: loss for key, loss in entry["losses"].items() if loss["weight"] is not None}
    assert set(report.values) == set(expected)
    for key, loss in expected.items():
        assert report.values[key].item() == pytest.approx(loss["value"], rel=1e-5, abs=1e-7), key
        assert report.weights[key] == pytest.approx(loss["weight"]), key
    assert report.total.item() == pytest.approx(entry["weighted_total"], rel=1e-5)

    report.total.backward()
    for key, value in inputs.items():
        if value.requires_grad:
            assert value.grad is not None
            torch.testing.assert_close(value.grad, tensors[f"grad/{key}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_deformable_attention(name: str) -> None:
    tensors = store.tensors_of("deform_attn", name)
    leaves = {
        key: tensors[key].double().requires_grad_() for key in ("value", "sampling_locations", "attention_weights")
    }
    shapes = [(int(height), int(width)) for height, width in tensors["spatial_shapes"]]
    output = deform_attn.deformable_attention(leaves["value"], shapes, *list(leaves.values())[1:])
    torch.testing.assert_close(output.float(), tensors["output"], rtol=1e-5, atol=1e-5)
    output.backward(tensors["cotangent"].double())
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.float(), tensors[f"grad_{key}"], rtol=1e-4, atol=1e-5)


def test_merged_branch_equals_the_additive_form() -> None:
    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    x, rank = make(3, 4), 2
    w1, b1, a1, up1 = make(6, 4), make(6), make(rank, 4), make(6, rank)
    w2, b2, a2, up2 = make(4, 6), make(4), make(rank, 6), make(4, rank)
    hidden = torch.relu(x @ w1.T + b1 + x @ a1.T @ up1.T)
    expected = hidden @ w2.T + b2 + hidden @ a2.T @ up2.T
    torch.testing.assert_close(lora.branch(x, (w1, b1, a1, up1), (w2, b2, a2, up2)), expected)


def test_boxes_by_hand() -> None:
    left, right = [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 1.0]
    assert iou(left, right) == pytest.approx(1 / 3)
    assert giou(left, right) == pytest.approx(1 / 3)  # the enclosing box is the union
    assert l1(left, right) == pytest.approx(0.25)
    apart = [0.875, 0.5, 0.25, 1.0]
    assert iou([0.125, 0.5, 0.25, 1.0], apart) == 0
    assert giou([0.125, 0.5, 0.25, 1.0], apart) == pytest.approx(-0.5)
    assert iou([0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]) == 0
