"""ReLU and dropout as one step, which keeps nothing for the backward pass that the next layer does not keep as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu_dropout(hidden: Tensor, probability: float, training: bool, overwrite: bool = False) -> Tensor:
    """Return dropout(relu(hidden)), any shape.

    Args:
        hidden: the tensor.
        probability: with which a value is set to zero, in [0, 1); the others are divided by 1 - probability.
        training: whether anything is set to zero at all.
        overwrite: whether ``hidden`` is not read by anyone else, so that without gradients the result takes its place.
    """
    if not training or probability == 0:
        # What a linear layer gives is a view, and a gradient through one that was written to copies all of it.
        return F.relu(hidden, inplace=overwrite and not torch.is_grad_enabled())
    out: Tensor = _ReluDropout.apply(hidden, probability)
    return out


class _ReluDropout(torch.autograd.Function):
    """Read off the result which values passed both: where it is zero, the gradient is.

    Done one after the other, the result of the ReLU and the mask of the dropout would be kept beside the result.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, probability: float) -> Tensor:
        out, _ = torch.native_dropout(F.relu(hidden), probability, True)
        ctx.save_for_backward(out)
        ctx.scale = 1 / (1 - probability)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, out, 0) * ctx.scale, None
