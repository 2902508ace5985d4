"""Denoising queries: noise, slots, mask and pairs, from stored draws and from the seed they came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.models.denoising import DenoisingBatch, DenoisingQueries, Noise, draw_noise
from lora_detr.models.relation_detr import INVERSE_SIGMOID_EPS
from lora_detr.structures import Target
from tests.golden.store import case, cases, images_of, require, tensors_of

NAME = "denoising"


def test_values_exist() -> None:
    require(cases(NAME), NAME)


def compute(name: str, noise: Noise | None) -> tuple[dict[str, Any], dict[str, Tensor], DenoisingBatch]:
    entry, tensors = case(NAME, name), tensors_of(NAME, name)
    queries = DenoisingQueries(
        tensors["label_embedding"].shape[1],
        entry["num_classes"],
        num_queries=entry["denoising_nums"],
        label_noise=entry["label_noise_prob"],
        box_noise=entry["box_noise_scale"],
        max_targets=500,
        eps=INVERSE_SIGMOID_EPS,
    )
    with torch.no_grad():
        queries.labels.weight.copy_(tensors["label_embedding"])
    targets = [Target(boxes, labels, i, (1, 1)) for i, (labels, boxes) in enumerate(images_of(tensors))]
    torch.manual_seed(entry["manual_seed"])
    return entry, tensors, queries(targets, entry["num_queries"], noise)


def stored_noise(name: str) -> Noise:
    draw = {key.removeprefix("draw/"): value for key, value in tensors_of(NAME, name).items() if "draw/" in key}
    return Noise(draw["label_uniform"], draw["label_random_class"], draw["box_sign01"], draw["box_uniform"])


@pytest.mark.parametrize("drawn", [False, True], ids=["stored draws", "draws from the seed"])
@pytest.mark.parametrize("name", cases(NAME))
def test_queries(name: str, drawn: bool) -> None:
    entry, tensors, found = compute(name, None if drawn else stored_noise(name))
    assert found.groups == entry["groups"]
    assert found.content.shape[1] == entry["total_slots"]
    assert torch.allclose(found.content, tensors["label_query"], rtol=0, atol=1e-6)
    assert torch.allclose(found.box_logits, tensors["box_query_unact"], rtol=0, atol=1e-4)
    assert torch.equal(found.mask, tensors["attn_mask"])


@pytest.mark.parametrize("name", cases(NAME))
def test_positives(name: str) -> None:
    entry, tensors, found = compute(name, stored_noise(name))
    for image, (labels, _) in enumerate(images_of(tensors)):
        expected = [
            (group * entry["slots_per_group"] + target, target)
            for group in range(entry["groups"])
            for target in range(len(labels))
        ]
        assert found.pairs.pairs(0, image) == sorted(expected)


@pytest.mark.parametrize("name", cases(NAME))
def test_order_of_draws(name: str) -> None:
    entry, stored = case(NAME, name), stored_noise(name)
    torch.manual_seed(entry["manual_seed"])
    drawn = draw_noise(len(stored.label), entry["num_classes"], torch.device("cpu"))
    for field in ("label", "label_class", "sign", "distance"):
        assert torch.equal(getattr(drawn, field), getattr(stored, field)), field
