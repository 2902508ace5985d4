"""Small transformers of the Deformable family, with all kinds of branches: outputs, gradients, losses."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_detr.branches import AuxiliaryBranches, BranchedDetector, FFNBranch, LoRABranch
from lora_detr.checkpoints.official.keys import to_official, to_ours
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport
from lora_detr.models.decoder import DeformableDecoder
from lora_detr.models.deformable_detr import INVERSE_SIGMOID_EPS
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Neck, Tokens, flatten_levels
from lora_detr.models.proposals import Proposals
from tests.golden import store
from tests.golden.systems import check_terms, criterion, official_name, padded, preset_of


def is_ours(entry: dict[str, Any]) -> bool:
    """Say whether a case is of the Deformable family."""
    return "hybrid_queries" not in entry and "denoising_queries" not in entry


def preset(entry: dict[str, Any]) -> str:
    """Return the preset whose losses a case has, by its variant: ``lora3_pp`` is ``lora`` there."""
    return preset_of({"msdetr": "ms"}.get(variant := entry["variant"].removesuffix("_pp"), variant))


NAMES = [name for name in store.names("transformer_*") if is_ours(store.load_json(name))]
INPUTS, BASE = "transformer_inputs", "transformer_base_deformable"
# k of branches by their number, in the order of the official scripts (Table 4).
K = {0: (), 1: (6,), 2: (6, 3), 3: (6, 4, 2), 5: (6, 5, 4, 3, 2)}


@dataclass(frozen=True)
class Computed:
    """One case, run once for all tests that look at it."""

    entry: dict[str, Any]
    tensors: dict[str, Tensor]
    tokens: Tokens
    outputs: dict[str, Tensor]
    gradient_leaves: dict[str, Tensor]
    report: LossReport


@functools.cache
def compute(name: str) -> Computed:
    entry, tensors, inputs = store.load_json(name), store.load_tensors(name), store.load_tensors(INPUTS)
    levels = [inputs[f"src/{i}"].float().requires_grad_() for i in range(len(entry["levels"]))]
    model = build(entry)
    load(model, tensors)
    tokens = flatten_levels(levels, inputs["image_mask"], model.detector.level_embedding)
    detected = model.detector.decode(tokens)
    branched = model.branches(detected, model.detector)

    predictions = [layer.prediction for layer in detected.layers]
    assert detected.encoder is not None
    outputs = {
        "main/logits": torch.stack([prediction.logits for prediction in predictions]),
        "main/boxes": torch.stack([prediction.boxes for prediction in predictions]),
        "hs/main": torch.stack([layer.hidden for layer in detected.layers]),
        "enc/logits": detected.encoder.prediction.logits,
        "enc/boxes": detected.encoder.prediction.boxes,
        "enc/anchors": detected.encoder.anchors,
        "ref/init": detected.initial_reference,
        "memory": detected.memory,
    }
    outputs["ref/inter"] = outputs["main/boxes"]
    if branched is not None:
        outputs["aux/logits"] = torch.stack([layer.logits for layer in branched.layers], dim=1)
        outputs["aux/boxes"] = torch.stack([layer.boxes for layer in branched.layers], dim=1)
        outputs["hs/aux"] = torch.stack(branched.hidden, dim=1)

    images = []
    while f"target/img{len(images)}/labels" in tensors:
        key = f"target/img{len(images)}"
        images.append((tensors[f"{key}/labels"], tensors[f"{key}/boxes"].reshape(-1, 4)))
    count = entry["num_aux_branches"]
    lora = entry["lora_rank"] is not None
    report = criterion(
        preset(entry),
        len(predictions),
        entry.get("k_per_branch", K[count]),
        # The ++ configurations with LoRA unite the branches' pairs with the one-to-one pairs.
        merge=entry.get("use_indices_merge", lora and entry["mixed_selection"]),
    )(detected, branched, padded(images), Normaliser(sum(len(labels) for labels, _ in images)))
    leaves = dict(model.named_parameters()) | {f"src{i}": level for i, level in enumerate(levels)}
    return Computed(entry, tensors, tokens, outputs, leaves, report)


class NoBackbone(nn.Module):
    """Stands in for a backbone: the reference values enter after the neck."""

    channels = (1,)
    strides = (1,)


def build(entry: dict[str, Any]) -> BranchedDetector[TwoStageDetector]:
    width, levels, num_layers = entry["d_model"], len(entry["levels"]), entry["decoder_layers"]
    sizes = BlockSizes(width, entry["dim_feedforward"], entry["heads"], levels, entry["points"], 0.0)
    detector = TwoStageDetector(
        backbone=NoBackbone(),  # type: ignore[arg-type]
        neck=Neck((1,), width, 1),
        encoder=DeformableEncoder(entry["encoder_layers"], sizes),
        proposals=Proposals(width, entry["num_queries"], entry["mixed_selection"]),
        decoder=DeformableDecoder(
            num_layers,
            sizes,
            look_forward_twice=entry["look_forward_twice"],
            order="cross-first" if preset(entry) == "ms-detr" else "self-first",
        ),
        heads=Heads(num_layers + 1, width, entry["num_classes"], INVERSE_SIGMOID_EPS),
        hidden_dim=width,
        levels=levels,
    )
    detector.neck = nn.Identity()  # type: ignore[assignment]
    branches = [branch(entry) for _ in range(entry["num_aux_branches"])]
    return BranchedDetector(detector, AuxiliaryBranches(branches))


def branch(entry: dict[str, Any]) -> LoRABranch | FFNBranch:
    sizes = (entry["decoder_layers"], entry["d_model"], entry["dim_feedforward"])
    if entry["lora_rank"] is not None:
        return LoRABranch(*sizes, entry["lora_rank"], "xavier")
    return FFNBranch(*sizes, 0.0, "cross_output" if preset(entry) == "ms-detr" else "ffn_input")


def load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = store.load_tensors(BASE) | store.under(tensors, "state/")
    ours = {to_ours(key): value.float() for key, value in state.items()}
    assert None not in ours
    assert [to_official(to_ours(key) or "") for key in state] == list(state)
    model.load_state_dict(ours, strict=True)  # type: ignore[arg-type]


def check_gradients(computed: Computed, objective: Tensor, prefix: str) -> None:
    expected = store.under(computed.tensors, prefix)
    store.require(expected, f"gradients {prefix}")
    leaves = {name: computed.gradient_leaves[to_ours(name) or name] for name in expected}
    found = torch.autograd.grad(objective, list(leaves.values()), retain_graph=True, allow_unused=True)
    for (name, value), gradient in zip(expected.items(), found, strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        largest = value.abs().max().item()
        assert (gradient - value).abs().max().item() <= 1e-3 * max(largest, 1e-6), f"{prefix}{name}"


def test_values_exist() -> None:
    for wanted in ("deformable", "deformable-lora3", "deformable-ffn3", "ms-detr"):
        store.require([name for name in NAMES if preset(store.load_json(name)) == wanted], f"a transformer of {wanted}")


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_positions(name: str) -> None:
    computed, inputs = compute(name), store.load_tensors(INPUTS)
    assert [list(shape) for shape in computed.tokens.shapes] == [list(level) for level in computed.entry["levels"]]
    sizes = [height * width for height, width in computed.tokens.shapes]
    embedding = computed.gradient_leaves["detector.level_embedding"]
    masks, positions = computed.tokens.padding.split(sizes, 1), computed.tokens.position.split(sizes, 1)
    for i, (mask, position) in enumerate(zip(masks, positions, strict=True)):
        assert torch.equal(mask, inputs[f"mask/{i}"].flatten(1))
        expected = inputs[f"pos/{i}"].flatten(2).transpose(1, 2)
        assert torch.allclose(position - embedding[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str) -> None:
    computed = compute(name)
    expected = store.under(computed.tensors, "out/")
    if "memory" in computed.tensors:
        expected["memory"] = computed.tensors["memory"]
    store.require(expected, "outputs")
    for key, value in expected.items():
        assert torch.allclose(computed.outputs[key], value, rtol=0, atol=1e-4), key


@pytest.mark.parametrize("name", NAMES)
def test_vector_jacobian_products(name: str) -> None:
    computed = compute(name)
    cotangents = {key: value for key, value in computed.tensors.items() if key.startswith("cotangent/")}
    store.require(cotangents, "cotangents")
    products = [(computed.outputs[key.removeprefix("cotangent/")] * value).sum() for key, value in cotangents.items()]
    check_gradients(computed, torch.stack(products).sum(), "vjp/")


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_their_gradients(name: str) -> None:
    computed = compute(name)
    expected, num_layers = computed.entry["loss"]["terms"], computed.entry["decoder_layers"]
    # Wider than for the losses alone: these are losses of outputs that differ by float noise already.
    suffix = "_o2m" if preset(computed.entry) == "ms-detr" else "_o2m_lora_"
    name_of = partial(official_name, num_layers=num_layers, branch_suffix=suffix)
    check_terms(computed.report, expected, name_of, relative=2e-5, absolute=1e-6)
    assert computed.report.total.item() == pytest.approx(computed.entry["loss"]["weighted_total"], rel=2e-5)
    check_gradients(computed, computed.report.total, "lossgrad/")
