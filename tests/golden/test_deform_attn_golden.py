"""Deformable sampling: values and gradients."""

from __future__ import annotations

import pytest
import torch

from lora_detr.ops.deform_attn import deformable_sampling
from tests.golden.store import cases, require, tensors_of

NAME = "deform_attn"
INPUTS = ("value", "sampling_locations", "attention_weights")


def test_values_exist() -> None:
    require(cases(NAME), NAME)


@pytest.mark.parametrize("name", cases(NAME))
def test_output_and_gradients(name: str) -> None:
    tensors = tensors_of(NAME, name)
    leaves = {key: tensors[key].clone().requires_grad_() for key in INPUTS}
    shapes = [(int(height), int(width)) for height, width in tensors["spatial_shapes"]]
    output = deformable_sampling(leaves["value"], shapes, leaves["sampling_locations"], leaves["attention_weights"])
    torch.testing.assert_close(output, tensors["output"], rtol=1e-5, atol=1e-5)
    output.backward(tensors["cotangent"])
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, tensors[f"grad_{key}"], rtol=1e-4, atol=1e-4)
