"""Count what tensor operations compute and move, without computing: on the meta device tensors have shapes alone.

A multiply-add counts as two floating-point operations. Counted are products of matrices, convolutions and bilinear
sampling. Elementwise work, sums, norms and softmax are not: their time is that of the bytes they move.

Bytes are those of all inputs and results of an operation, each read or written once; a view moves nothing. So they are
those of a program that runs operation by operation, as PyTorch does unless it compiles: caches between them may save
some, and a kernel that does the work of several saves more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# They make room, or another shape, and start nothing on a device.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
# They write without reading what they are given.
FILLING = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "rand_like", "bernoulli_"}
FILLING |= {"zero_", "fill_"}
# They read a part of their first tensor: at most so many values for each that they return.
PICKING = {"embedding": 1, "gather": 1, "grid_sampler_2d": 4, "index": 1, "index_select": 1}
# Multiply-adds of a sampled value: four pixels. Back: to the four, and from them to each of two coordinates.
SAMPLING, SAMPLING_BACK = 4, 4 + 2 * 4
COUNTED = ("aten", "workload")
"""Namespaces of operations; in others are notes for profilers."""


@dataclass(frozen=True)
class Work:
    """What an operation needs.

    Attributes:
        flops: floating-point operations, a multiply-add being two.
        moved: bytes read and written.
    """

    flops: int
    moved: int


@dataclass(frozen=True)
class Workload:
    """Operations that run one after the other.

    Attributes:
        operations: what each needs, those left out that start nothing on a device.
    """

    operations: tuple[Work, ...]

    @property
    def flops(self) -> int:
        """Sum over the operations."""
        return sum(work.flops for work in self.operations)

    @property
    def moved(self) -> int:
        """Bytes, sum over the operations."""
        return sum(work.moved for work in self.operations)

    def __add__(self, other: Workload) -> Workload:
        return Workload(self.operations + other.operations)


class WorkCounter(TorchDispatchMode):
    """Notes what each operation needs that reaches the dispatcher, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Work] = []

    @property
    def workload(self) -> Workload:
        """What was noted so far."""
        return Workload(tuple(self._found))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.namespace in COUNTED and not func.is_view and name not in FREE:
            flops = _flops(func, args, kwargs, result)
            self._found.append(Work(flops, _moved(name, _tensors((args, kwargs)), _tensors(result))))
        return result


def count(run: Callable[[], object]) -> Workload:
    """Return what runs when something is called once."""
    with WorkCounter() as counter:
        run()
    return counter.workload


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes tensors have; what is there several times by ``expand`` counts once."""
    return sum(
        one.element_size() * math.prod(size for size, stride in zip(one.shape, one.stride(), strict=True) if stride)
        for one in tensors
    )


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    if func is aten.grid_sampler_2d.default:
        return 2 * SAMPLING * int(result.numel())
    if func is aten.grid_sampler_2d_backward.default:
        return 2 * SAMPLING_BACK * int(args[0].numel())
    if func.namespace == "workload":
        # A value more or less for the weight: it multiplies what was sampled, and gets a gradient of its own.
        each, weighing = (SAMPLING, 1) if func is torch.ops.workload.sampling.default else (SAMPLING_BACK, 2)
        *_, value, _, weights = args
        return 2 * (each + weighing) * int(weights.numel()) * int(value.shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _moved(name: str, given: list[Tensor], results: list[Tensor]) -> int:
    written = bytes_of(results)
    if name in FILLING:
        return written
    if name in PICKING:
        return min(bytes_of(given[:1]), PICKING[name] * written) + bytes_of(given[1:]) + written
    return bytes_of(given) + written


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def compiled_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Stand for a compiled kernel of ``deformable_sampling`` on the meta device: one operation, and one back.

    It reads what it is given and writes the result; nothing that was sampled is ever stored.
    """
    result: Tensor = torch.ops.workload.sampling(value, locations, weights)
    return result


torch.library.define("workload::sampling", "(Tensor value, Tensor locations, Tensor weights) -> Tensor")
torch.library.define(
    "workload::sampling_back",
    "(Tensor gradient, Tensor value, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("workload::sampling")
def _sampled(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("workload::sampling_back")
def _gradients(gradient: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _give_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.workload.sampling_back(gradient, *ctx.saved_tensors)
    return gradients


torch.library.register_autograd("workload::sampling", _give_back, setup_context=_keep)
