"""LoRA branches: additive equals merged, a start equal to the primary path, gradients, ranks, sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from lora_detr.branches import LoRABranch, LoRAConfig
from lora_detr.branches.lora import Initialisation, lora_feed_forward
from lora_detr.matchers import TopKConfig
from lora_detr.models import DeformableDetrConfig
from lora_detr.models.layers.ffn import FeedForward
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import DecoderLayerOutput, Prediction
from tests.contracts.unions import tiny_detector
from tests.reference import lora

HIDDEN, FFN, IMAGES, QUERIES = 8, 12, 2, 3


def make_ffn(dropout: float = 0.0) -> FeedForward:
    ffn = FeedForward(HIDDEN, FFN, dropout)
    for parameter in ffn.parameters():
        nn.init.normal_(parameter)
    return ffn


def publish(ffn: FeedForward, inputs: Tensor | None = None) -> DecoderLayerOutput:
    """Return what a decoder layer publishes about its feed-forward network."""
    inputs = torch.randn(IMAGES, QUERIES, HIDDEN) if inputs is None else inputs
    ffn_hidden, hidden = ffn(inputs)
    unread = Prediction(torch.empty(0), torch.empty(0))
    return DecoderLayerOutput(inputs, inputs, ffn_hidden, hidden, torch.empty(0), unread)


def make_branch(rank: int, layers: int = 1, initialisation: Initialisation = "xavier") -> LoRABranch:
    return LoRABranch(layers, HIDDEN, FFN, rank, initialisation)


def matrices(branch: LoRABranch, layer: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (A, B) of both linear layers in the paper's orientation: A [r, in], B [out, r]."""
    member = branch.layers[layer]
    return (member.a1.T, member.b1.T), (member.a2.T, member.b2.T)  # type: ignore[union-attr]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 6), layer=st.integers(0, 2))
def test_additive_equals_merged(seed: int, rank: int, layer: int) -> None:
    torch.manual_seed(seed)
    ffn, branch = make_ffn(), make_branch(rank, layers=3)
    output = publish(ffn)
    found = branch(layer, ffn, output)

    (a1, b1), (a2, b2) = matrices(branch, layer)
    projected = lora.branch(
        output.ffn_input, (ffn.linear1.weight, ffn.linear1.bias, a1, b1), (ffn.linear2.weight, ffn.linear2.bias, a2, b2)
    )
    torch.testing.assert_close(found, ffn.norm(output.ffn_input + projected), rtol=1e-4, atol=1e-5)

    replaced = {
        "linear1.weight": ffn.linear1.weight + b1 @ a1,
        "linear2.weight": ffn.linear2.weight + b2 @ a2,
    }
    _, merged = functional_call(ffn, replaced, (output.ffn_input,))
    torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_merged_form() -> None:
    ffn, branch = make_ffn(), make_branch(3)
    inputs = torch.randn(IMAGES, QUERIES, HIDDEN)
    cotangent = torch.randn(IMAGES, QUERIES, HIDDEN)
    leaves = [*ffn.parameters(), *branch.parameters()]
    additive = torch.autograd.grad((branch(0, ffn, publish(ffn, inputs)) * cotangent).sum(), leaves)
    (a1, b1), (a2, b2) = matrices(branch)
    replaced = {"linear1.weight": ffn.linear1.weight + b1 @ a1, "linear2.weight": ffn.linear2.weight + b2 @ a2}
    merged = torch.autograd.grad((functional_call(ffn, replaced, (inputs,))[1] * cotangent).sum(), leaves)
    for found, expected in zip(additive, merged, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ranks", [(4,), (4, 2, 7)])
def test_zero_b_starts_equal_to_the_primary_path_bit_for_bit(training: bool, ranks: tuple[int, ...]) -> None:
    # In evaluation dropout is off whatever its probability; in training it has to be 0 for the same mask.
    ffn = make_ffn(dropout=0.0 if training else 0.5).train(training)
    branches = [make_branch(rank, initialisation="zero-b").train(training) for rank in ranks]
    output = publish(ffn)
    for hidden in lora_feed_forward(branches, 0, ffn, output):
        assert torch.equal(hidden, output.hidden)


def test_xavier_differs_from_the_primary_path_at_the_start() -> None:
    ffn, branches = make_ffn(), [make_branch(4), make_branch(4)]
    output = publish(ffn)
    first, second = lora_feed_forward(branches, 0, ffn, output)
    assert not torch.allclose(first, output.hidden)
    assert not torch.allclose(first, second)


def test_gradients_reach_base_weights_and_both_matrices() -> None:
    ffn, branch = make_ffn(), make_branch(2, layers=2)
    # A plain sum behind a layer norm has no gradient.
    branch(1, ffn, publish(ffn)).pow(3).sum().backward()
    for name, parameter in ffn.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    for name, parameter in branch.layers[1].named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in branch.layers[0].parameters())


def test_zero_b_still_trains_b() -> None:
    ffn, branch = make_ffn(), make_branch(2, initialisation="zero-b")
    branch(0, ffn, publish(ffn)).pow(3).sum().backward()
    member = branch.layers[0]
    assert member.b1.grad.any() and member.b2.grad.any()  # type: ignore[union-attr]
    assert not member.a1.grad.any() and not member.a2.grad.any()  # type: ignore[union-attr]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_mixed_ranks_together_equal_each_alone(seed: int, ranks: list[int]) -> None:
    torch.manual_seed(seed)
    ffn, branches = make_ffn(), [make_branch(rank) for rank in ranks]
    output = publish(ffn)
    together = LoRABranch.forward_stack(branches, 0, ffn, output)
    assert together.shape == (len(ranks), IMAGES, QUERIES, HIDDEN)
    for hidden, branch in zip(together, branches, strict=True):
        torch.testing.assert_close(hidden, branch(0, ffn, output), rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(together)
    parameters = [parameter for branch in branches for parameter in branch.parameters()]
    joint = torch.autograd.grad((together * cotangent).sum(), parameters, retain_graph=True)
    alone = torch.autograd.grad(
        sum((branch(0, ffn, output) * one).sum() for branch, one in zip(branches, cotangent, strict=True)), parameters
    )
    for found, expected in zip(joint, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_branches_draw_their_own_dropout() -> None:
    ffn, branch = make_ffn(dropout=0.5).train(), make_branch(2)
    output = publish(ffn)
    first, second = lora_feed_forward([branch, branch], 0, ffn, output)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("rank", "hidden", "ffn", "layers", "count"),
    [(32, 256, 2048, 6, 884_736), (48, 256, 2048, 6, 1_327_104), (16, 256, 2048, 6, 442_368), (3, 8, 12, 2, 240)],
)
def test_parameter_count(rank: int, hidden: int, ffn: int, layers: int, count: int) -> None:
    """L * 2 r (D + F); 884,736 takes Table 6 from 47.3 M to 48.1 M."""
    with torch.device("meta"):
        branch = LoRAConfig(rank=rank, matcher=TopKConfig(k=1)).build(layers, hidden, ffn, 0.0)
    assert sum(parameter.numel() for parameter in branch.parameters()) == count == layers * 2 * rank * (hidden + ffn)


@pytest.mark.parametrize("initialisation", ["xavier", "zero-b"])
def test_the_config_passes_the_initialisation_on(initialisation: Initialisation) -> None:
    branch = LoRAConfig(rank=4, initialisation=initialisation, matcher=TopKConfig(k=1)).build(2, HIDDEN, FFN, 0.0)
    assert len(branch.layers) == 2
    for layer in range(2):
        (a1, b1), (a2, b2) = matrices(branch, layer)
        assert a1.shape == (4, HIDDEN) and b1.shape == (FFN, 4)
        assert a2.shape == (4, FFN) and b2.shape == (HIDDEN, 4)
        assert a1.any() and a2.any()
        assert bool(b1.any()) == bool(b2.any()) == (initialisation == "xavier")
    assert not torch.equal(matrices(branch, 0)[0][0], matrices(branch, 1)[0][0])


def test_merge_into_turns_the_network_into_the_branch() -> None:
    ffn, branch = make_ffn(), make_branch(3, layers=2)
    output = publish(ffn)
    expected, untouched = branch(1, ffn, output), ffn.linear1.bias.clone()
    branch.merge_into(1, ffn)
    torch.testing.assert_close(ffn(output.ffn_input)[1], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(ffn.linear1.bias, untouched)
    assert ffn.linear1.weight.requires_grad


@pytest.mark.parametrize("shared", [False, True])
def test_one_draw_of_a_for_all_layers_and_branches(shared: bool) -> None:
    branch = {"kind": "lora", "initialisation": "zero-b", "shared_draw": shared, "matcher": {"kind": "topk", "k": 1}}
    config = RunConfig.model_validate(
        {"model": tiny_detector(DeformableDetrConfig).model_dump(), "branches": [branch] * 2}
    )
    layers = [layer for member in config.build_model(3, load_weights=False).branches.members for layer in member.layers]
    assert len(layers) == 4
    for layer in layers[1:]:
        assert torch.equal(layer.a1, layers[0].a1) == torch.equal(layer.a2, layers[0].a2) == shared
        assert not layer.b1.any()
        assert layer.a1.data_ptr() != layers[0].a1.data_ptr()
