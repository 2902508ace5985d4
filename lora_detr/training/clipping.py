"""Bounding the gradient of a step: as a whole, or that of the branches and that of all else one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_detr.losses.report import LossReport
from lora_detr.processes.world import World
from lora_detr.recipe.optimisation import OptimizerConfig


class Clipping(Protocol):
    """Takes the backward pass of every batch of a step, and leaves the bounded gradient in the parameters."""

    def pass_of(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return the context in which a batch is run, forward and backward."""

    def backward(self, report: LossReport) -> None:
        """Add the gradient of a batch."""

    def finish(self) -> Tensor:
        """Bound the gradient of the step, in place, and return the norm that it had as a whole."""

    def forget(self) -> None:
        """Drop what was added since the last step, gradients in parameters excepted."""


class ClippedTogether:
    """Bound the norm of the whole gradient, as the authors do.

    Args:
        parameters: that are trained.
        limit: largest norm; None for none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], limit: float | None) -> None:
        self.parameters = list(parameters)
        self.limit = math.inf if limit is None else limit

    def pass_of(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return nullcontext()

    def backward(self, report: LossReport) -> None:
        """Run the backward pass of the total."""
        report.total.backward()

    def finish(self) -> Tensor:
        """Scale the gradient down to the limit if it is longer."""
        return nn.utils.clip_grad_norm_(self.parameters, self.limit)

    def forget(self) -> None:
        """Do nothing: all of it is in the parameters."""


class ClippedApart:
    """Bound the gradient of the branches' losses and that of all other losses one by one, then add them.

    So the branches cannot use up what the bound leaves to the primary path. A batch takes two backward passes. They are
    run without the hooks of DistributedDataParallel, which allow for one pass, and averaged over processes here.

    Args:
        parameters: that are trained.
        limit: largest norm of either gradient; None for none.
        branch_names: sources of the branches' losses.
        world: ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], limit: float | None, branch_names: Sequence[str], world: World
    ) -> None:
        self.parameters, self.world = list(parameters), world
        self.limit = math.inf if limit is None else limit
        self.branch_names = frozenset(branch_names)
        self.parts: tuple[list[Tensor], ...] | None = None

    def pass_of(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which processes keep their gradients to themselves."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def backward(self, report: LossReport) -> None:
        """Run both backward passes."""
        flags = [key.source in self.branch_names for key in report.keys]
        own = torch.tensor(flags, dtype=report.weighted.dtype, device=report.weighted.device)
        others = self._gradient((report.weighted * (1 - own)).sum(), keep_graph=True)
        branches = self._gradient((report.weighted * own).sum(), keep_graph=False)
        if self.parts is None:
            self.parts = (others, branches)
        else:
            pairs = zip(self.parts, (others, branches), strict=True)
            self.parts = tuple([old + new for old, new in zip(*pair, strict=True)] for pair in pairs)

    def finish(self) -> Tensor:
        """Average over processes, scale either gradient down to the limit if it is longer, and add them."""
        # A step without a loss, since matching failed, has no gradient; the others wait for it all the same.
        parts = self.parts or tuple([torch.zeros_like(parameter) for parameter in self.parameters] for _ in range(2))
        self.forget()
        if self.world.size > 1:
            parts = tuple(self._averaged(part) for part in parts)
        whole = nn.utils.get_total_norm([first + second for first, second in zip(*parts, strict=True)])
        for part in parts:
            # As torch.nn.utils.clip_grad_norm_ does, which takes parameters.
            torch._foreach_mul_(part, (self.limit / (nn.utils.get_total_norm(part) + 1e-6)).clamp(max=1.0))
        for parameter, first, second in zip(self.parameters, *parts, strict=True):
            parameter.grad = first + second
        return whole

    def forget(self) -> None:
        """Drop both gradients."""
        self.parts = None

    def _averaged(self, part: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean over processes, after one message."""
        flat = self.world.sum(torch.cat([gradient.flatten() for gradient in part])) / self.world.size
        pieces = flat.split([gradient.numel() for gradient in part])
        return [torch.empty_like(own).copy_(piece.view(own.shape)) for own, piece in zip(part, pieces, strict=True)]

    def _gradient(self, loss: Tensor, keep_graph: bool) -> list[Tensor]:
        found = torch.autograd.grad(
            loss, self.parameters, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        return list(found)


def build_clipping(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig, branch_names: Sequence[str], world: World
) -> Clipping:
    """Return what bounds the gradient of a run.

    Args:
        parameters: that are trained.
        config: the limit, and what it is for.
        branch_names: sources of the branches' losses.
        world: ranks.
    """
    if config.clip == "apart":
        return ClippedApart(parameters, config.clip_norm, branch_names, world)
    return ClippedTogether(parameters, config.clip_norm)
