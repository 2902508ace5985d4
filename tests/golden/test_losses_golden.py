"""Every loss of the Deformable family with LoRA branches or none: value, weight, total and gradient."""

from __future__ import annotations

import pytest
import torch

from lora_detr.structures import (
    BranchOutput,
    DecoderLayerOutput,
    DetectorOutput,
    EncoderOutput,
    Prediction,
)
from tests.golden import store
from tests.golden.systems import check_terms, criterion, one_to_one_family, padded

NAMES = [name for name in store.names("losses_*") if one_to_one_family(store.load_json(name))]


@pytest.mark.parametrize("branches", [False, True])
def test_values_exist(branches: bool) -> None:
    found = [name for name in NAMES if bool(store.load_json(name)["k_per_branch"]) == branches]
    store.require(found, "losses with LoRA branches" if branches else "losses without branches")


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name: str) -> None:
    entry, tensors = store.load_json(name), store.load_tensors(name)
    inputs = {
        key.removeprefix("grad/"): tensors[key.removeprefix("grad/")].clone().requires_grad_()
        for key in tensors
        if key.startswith("grad/")
    }
    logits, boxes = inputs["main/logits"], inputs["main/boxes"]
    num_layers = len(logits)
    assert num_layers == entry["num_decoder_layers"]
    # The criterion reads of a decoder layer nothing but its prediction.
    unread = torch.empty(0)
    layers = tuple(
        DecoderLayerOutput(unread, unread, unread, unread, unread, Prediction(logits[i], boxes[i]))
        for i in range(num_layers)
    )
    encoder = EncoderOutput(Prediction(inputs["enc/logits"], inputs["enc/boxes"]), tensors["enc/anchors"])
    branches = None
    if entry["k_per_branch"]:
        parts = [
            Prediction(inputs["aux/logits"][:, layer], inputs["aux/boxes"][:, layer]) for layer in range(num_layers)
        ]
        branches = BranchOutput(tuple(parts), ())
    report = criterion(
        num_layers,
        entry["k_per_branch"],
        lora=entry["config"].startswith("lora"),
        merge=entry["use_indices_merge"],
        threshold=entry["tau"],
        class_weight=entry["alpha_class"],
    )(
        DetectorOutput(layers, encoder, unread, unread),
        branches,
        padded(store.images_of(tensors)),
        float(entry["num_boxes_normaliser"]),
    )

    check_terms(report, entry["losses"], num_layers, relative=1e-5, absolute=1e-7)
    assert report.total.item() == pytest.approx(entry["weighted_total"], rel=1e-5)
    report.total.backward()
    for key, value in inputs.items():
        assert value.grad is not None, key
        assert (value.grad - tensors[f"grad/{key}"]).abs().max() < 1e-6, key
