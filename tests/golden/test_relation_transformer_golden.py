"""Small transformers of the Relation family, with LoRA branches or none: outputs of both modes, and gradients."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_detr.branches import AuxiliaryBranches, BranchedDetector, LoRABranch
from lora_detr.checkpoints.official.keys import to_official, to_ours
from lora_detr.models.decoder import DecoderPass
from lora_detr.models.detector import TwoStageDetector
from lora_detr.models.encoder import DeformableEncoder
from lora_detr.models.heads import Heads
from lora_detr.models.layers.sizes import BlockSizes
from lora_detr.models.neck import Neck, Tokens, flatten_levels
from lora_detr.models.proposals import InitialQueries, Proposals
from lora_detr.models.query_groups import HybridQueries, QueryGroups
from lora_detr.models.relation_decoder import RelationDecoder
from lora_detr.models.relation_detr import INVERSE_SIGMOID_EPS
from lora_detr.structures import BranchOutput, DetectorOutput, EncoderOutput
from tests.golden import store
from tests.golden.test_transformer_golden import INPUTS, NoBackbone

BASE = "transformer_base_relation"
NAMES = [name for name in store.names("transformer_*") if "denoising_queries" in store.load_json(name)]


@dataclass(frozen=True)
class Case:
    """A model with the stored parameters, and its tokens."""

    entry: dict[str, Any]
    tensors: dict[str, Tensor]
    model: BranchedDetector[TwoStageDetector]
    levels: list[Tensor]
    tokens: Tokens


@functools.cache
def prepare(name: str) -> Case:
    entry, tensors, inputs = store.load_json(name), store.load_tensors(name), store.load_tensors(INPUTS)
    model = build(entry)
    layers = entry["decoder_layers"]
    state = store.load_tensors(BASE) | store.under(tensors, "state/")
    ours = {to_ours(key, num_layers=layers): value.float() for key, value in state.items()}
    assert [to_official(key or "", family="relation", num_layers=layers) for key in ours] == list(state)
    model.load_state_dict(ours, strict=True)  # type: ignore[arg-type]
    levels = [inputs[f"src/{i}"].float().requires_grad_() for i in range(len(entry["levels"]))]
    tokens = flatten_levels(levels, inputs["image_mask"], model.detector.level_embedding)
    return Case(entry, tensors, model, levels, tokens)


def build(entry: dict[str, Any]) -> BranchedDetector[TwoStageDetector]:
    width, num_layers, classes = entry["d_model"], entry["decoder_layers"], entry["num_classes"]
    sizes = BlockSizes(width, entry["dim_feedforward"], entry["heads"], len(entry["levels"]), entry["points"], 0.0)
    detector = TwoStageDetector(
        backbone=NoBackbone(),  # type: ignore[arg-type]
        neck=Neck((1,), width, 1),
        encoder=DeformableEncoder(entry["encoder_layers"], sizes, fusion=True),
        proposals=Proposals(width, entry["num_queries"], True, "best-class", encode_boxes=False),
        decoder=RelationDecoder(num_layers, sizes),
        heads=Heads(num_layers + 1, width, classes, INVERSE_SIGMOID_EPS, normalised=True),
        hidden_dim=width,
        levels=len(entry["levels"]),
        query_groups=QueryGroups(hybrid=HybridQueries(width, entry["hybrid_queries"], True, classes)),
    )
    detector.neck = nn.Identity()  # type: ignore[assignment]
    branches = [
        LoRABranch(num_layers, width, entry["dim_feedforward"], entry["lora_rank"], "zero-b")
        for _ in range(entry["num_aux_branches"])
    ]
    return BranchedDetector(detector, AuxiliaryBranches(branches))


def published(detected: DetectorOutput, branched: BranchOutput | None) -> dict[str, Tensor]:
    """Return outputs by the names of the reference values."""
    assert detected.encoder is not None
    outputs = {
        "logits": torch.stack([layer.prediction.logits for layer in detected.layers]),
        "boxes": torch.stack([layer.prediction.boxes for layer in detected.layers]),
        "enc_logits_all": detected.encoder.prediction.logits,
        "enc_boxes_all": detected.encoder.prediction.boxes,
        "enc_anchors_all": detected.encoder.anchors,
        "enc_logits_topk": chosen(detected.encoder, "logits"),
        "enc_boxes_topk": chosen(detected.encoder, "boxes"),
    }
    for group in detected.groups:
        assert group.encoder is not None
        outputs["hybrid_logits"] = torch.stack([layer.logits for layer in group.layers])
        outputs["hybrid_boxes"] = torch.stack([layer.boxes for layer in group.layers])
        outputs["hybrid_enc_logits"] = chosen(group.encoder, "logits")
        outputs["hybrid_enc_boxes"] = chosen(group.encoder, "boxes")
    if branched is not None:
        outputs["aux_logits"] = torch.stack([layer.logits for layer in branched.layers], dim=1)
        outputs["aux_boxes"] = torch.stack([layer.boxes for layer in branched.layers], dim=1)
    return outputs


def chosen(encoder: EncoderOutput, part: str) -> Tensor:
    assert encoder.selected is not None
    values: Tensor = getattr(encoder.prediction, part)
    return values.gather(1, encoder.selected[..., None].expand(-1, -1, values.shape[-1]))


def in_training(case: Case) -> dict[str, Tensor]:
    """Decode with the stored denoising queries in front.

    The reference values hold the branches of denoising queries too, which ours never computes: they are run here on
    what the decoder publishes of all queries, before the detector cuts those away.
    """
    detector, tokens, noised = case.model.detector, case.tokens, case.tensors
    memory = detector.encoder(tokens)
    described = detector.proposals.describe(memory, tokens)
    proposed = detector.proposals.propose(described, detector.heads.classes[-1], detector.heads.boxes[-1])
    encoder, queries = detector.proposals(proposed)

    def decode(queries: InitialQueries, how: DecoderPass) -> Any:
        return detector.decoder(queries, memory, tokens, detector.heads, how)

    joined = InitialQueries(
        torch.cat((noised["dn/box_query_unact"].sigmoid(), queries.reference), 1),
        torch.cat((noised["dn/label_query"], queries.content), 1),
        None,
    )
    layers = decode(joined, DecoderPass(mask=noised["dn/attn_mask"]))
    groups = detector.query_groups(queries, detector.proposals, described, proposed, decode, None).groups
    output = DetectorOutput(layers, encoder, queries.reference, memory, groups)
    return published(output, case.model.branches(output, detector))


def check_outputs(found: dict[str, Tensor], case: Case, prefix: str) -> None:
    for key, value in store.require(store.under(case.tensors, prefix), f"outputs {prefix}").items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-4), key


def test_values_exist() -> None:
    counts = [store.load_json(name)["num_aux_branches"] for name in NAMES]
    store.require([count for count in counts if count], "a Relation transformer with branches")
    store.require([count for count in counts if not count], "a Relation transformer without")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_in_evaluation(name: str) -> None:
    case = prepare(name)
    detected = case.model.detector.eval().decode(case.tokens)
    found = published(detected, case.model.branches(detected, case.model.detector))
    case.model.train()
    check_outputs(found, case, "eval/")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_in_training(name: str) -> None:
    case = prepare(name)
    found = in_training(case)
    check_outputs(found, case, "train/")


@pytest.mark.parametrize("name", NAMES)
def test_vector_jacobian_products(name: str) -> None:
    case = prepare(name)
    found = in_training(case)
    cotangents = store.under(case.tensors, "cotangent/")
    objective = torch.stack([(found[key] * value).sum() for key, value in cotangents.items()]).sum()
    assert objective.item() == pytest.approx(case.entry["vjp_objective"], rel=1e-3)
    expected = store.under(case.tensors, "vjp/")
    parameters = dict(case.model.named_parameters()) | {f"src{i}": level for i, level in enumerate(case.levels)}
    layers = case.entry["decoder_layers"]
    leaves = [parameters[to_ours(key, num_layers=layers) or key] for key in store.require(expected, "gradients")]
    gradients = torch.autograd.grad(objective, leaves, retain_graph=True)
    for (key, value), gradient in zip(expected.items(), gradients, strict=True):
        assert (gradient - value).abs().max() <= 1e-3 * value.abs().max(), key
