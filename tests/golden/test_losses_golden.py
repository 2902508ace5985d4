"""Every loss of every system: value, weight, total and gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.losses.normaliser import Normaliser
from lora_detr.structures import (
    Assignment,
    BranchOutput,
    DecoderLayerOutput,
    DetectorOutput,
    EncoderOutput,
    Prediction,
    QueryGroupOutput,
)
from tests.golden import store
from tests.golden.systems import check_terms, criterion, official_name, official_relation_name, padded, preset_of

NAMES = store.names("losses_*")
# The criterion reads of a decoder layer nothing but its prediction.
UNREAD = torch.empty(0)


@pytest.mark.parametrize("system", ["deformable", "lora", "naive", "ms", "relation", "lora_relation"])
def test_values_exist(system: str) -> None:
    found = [name for name in NAMES if store.load_json(name)["config"].rstrip("0123456789") == system]
    store.require(found, f"losses of {system}")


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name: str) -> None:
    entry, tensors = store.load_json(name), store.load_tensors(name)
    inputs = {
        key.removeprefix("grad/"): tensors[key.removeprefix("grad/")].clone().requires_grad_()
        for key in tensors
        if key.startswith("grad/")
    }
    num_layers = len(inputs["main/logits"])
    assert num_layers == entry["num_decoder_layers"]
    layers = tuple(
        DecoderLayerOutput(UNREAD, UNREAD, UNREAD, UNREAD, UNREAD, prediction) for prediction in _layers(inputs, "main")
    )
    branches = None
    if entry["k_per_branch"]:
        parts = [
            Prediction(inputs["aux/logits"][:, layer], inputs["aux/boxes"][:, layer]) for layer in range(num_layers)
        ]
        branches = BranchOutput(tuple(parts), ())
    preset = preset_of(entry["config"])
    report = criterion(
        preset,
        num_layers,
        entry["k_per_branch"],
        merge=entry.get("use_indices_merge"),
        threshold=entry["tau"],
        class_weight=entry["alpha_class"],
        repeats=entry.get("hybrid_assign"),
    )(
        DetectorOutput(layers, _encoder(inputs, tensors, "enc"), UNREAD, UNREAD, _groups(entry, inputs, tensors)),
        branches,
        padded(store.images_of(tensors)),
        Normaliser(sum(entry["num_gt"])),
    )

    if preset.startswith("relation"):
        name_of = partial(official_relation_name, num_layers=num_layers)
    else:
        suffix = "_o2m" if preset == "ms-detr" else "_o2m_lora_"
        name_of = partial(official_name, num_layers=num_layers, branch_suffix=suffix)
    check_terms(report, entry["losses"], name_of, relative=1e-5, absolute=1e-7)
    assert report.total.item() == pytest.approx(entry["weighted_total"], rel=1e-5)
    report.total.backward()
    for key, value in inputs.items():
        assert value.grad is not None, key
        assert (value.grad - tensors[f"grad/{key}"]).abs().max() < 1e-6, key


def _layers(inputs: dict[str, Tensor], part: str) -> tuple[Prediction, ...]:
    pairs = zip(inputs[f"{part}/logits"], inputs[f"{part}/boxes"], strict=True)
    return tuple(Prediction(logits, boxes) for logits, boxes in pairs)


def _encoder(inputs: dict[str, Tensor], tensors: dict[str, Tensor], part: str) -> EncoderOutput:
    """Return proposals; where the file has no anchors, it holds those alone that became queries."""
    boxes = inputs[f"{part}/boxes"]
    selected = torch.arange(boxes.shape[1]).expand(boxes.shape[:2])
    return EncoderOutput(Prediction(inputs[f"{part}/logits"], boxes), tensors.get(f"{part}/anchors", boxes), selected)


def _groups(
    entry: dict[str, Any], inputs: dict[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[QueryGroupOutput, ...]:
    if "dn/logits" not in inputs:
        return ()
    counts, groups, slots = entry["num_gt"], entry["denoising_groups"], entry["denoising_slots_per_group"]
    query = torch.arange(max(counts))[:, None] + torch.arange(groups) * slots  # [T, groups]
    known = torch.arange(max(counts)) < torch.tensor(counts)[:, None]  # [B, T]
    query = query.expand(1, len(counts), -1, -1)
    pairs = Assignment(query, torch.zeros(query.shape), known[None, :, :, None].expand(query.shape))
    return (
        QueryGroupOutput("denoising", _layers(inputs, "dn"), pairs=pairs, copies=groups),
        QueryGroupOutput("hybrid", _layers(inputs, "hybrid"), _encoder(inputs, tensors, "hybrid_enc")),
    )
