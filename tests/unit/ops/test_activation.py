"""ReLU and dropout as one step, against the two one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from lora_detr.ops.activation import relu_dropout

SIZES = [(7, 40), (2, 3, 33), (0, 5)]


def hidden_of(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("probability", [0.1, 0.6])
def test_result_and_gradient_are_those_of_relu_and_dropout(size: tuple[int, ...], probability: float) -> None:
    ours, theirs = hidden_of(size), hidden_of(size)
    torch.manual_seed(0)
    found = relu_dropout(ours, probability, training=True)
    torch.manual_seed(0)
    expected = torch.native_dropout(relu(theirs), probability, True)[0]
    factor = torch.randn(size, generator=torch.Generator().manual_seed(4))
    (found * factor).sum().backward()
    (expected * factor).sum().backward()
    assert torch.equal(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)


def test_the_share_of_dropped_values_is_the_probability() -> None:
    torch.manual_seed(0)
    out = relu_dropout(torch.ones(200, 500), 0.3, training=True)
    assert abs((out == 0).float().mean().item() - 0.3) < 0.01
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.7]))


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_without_dropout_it_is_relu_and_overwrites_only_when_told_to(probability: float, training: bool) -> None:
    hidden = hidden_of((4, 9)).detach()
    expected, before = relu(hidden), hidden.clone()
    assert torch.equal(relu_dropout(hidden, probability, training), expected)
    assert torch.equal(hidden, before)
    assert relu_dropout(hidden, probability, training, overwrite=True).data_ptr() != hidden.data_ptr()
    with torch.no_grad():
        out = relu_dropout(hidden, probability, training, overwrite=True)
    assert torch.equal(out, expected)
    assert out.data_ptr() == hidden.data_ptr()


def test_only_the_result_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = relu_dropout(hidden_of((4, 9)), 0.1, training=True)
    assert [tensor.data_ptr() for tensor in kept] == [out.data_ptr()]
