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
COUNTED = "aten"
"""Namespace of operations; in others are notes for profilers."""


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
    """Notes what each operation needs that reaches the dispatcher, in the backward pass too.

    Attributes:
        running: the one that is counting, if one is.
    """

    running: WorkCounter | None = None

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Work] = []

    def __enter__(self) -> Any:
        WorkCounter.running = self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        WorkCounter.running = None
        super().__exit__(*raised)

    def note(self, work: Work) -> None:
        """Add an operation that does not reach the dispatcher."""
        self._found.append(work)

    @property
    def workload(self) -> Workload:
        """What was noted so far."""
        return Workload(tuple(self._found))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == COUNTED and not func.is_view and name not in FREE:
            flops = _flops(func, args, kwargs, result)
            self.note(Work(flops, _moved(name, _tensors((args, kwargs)), _tensors(result))))
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
    result: Tensor = _CompiledSampling.apply(value, locations, weights)
    return result


class _CompiledSampling(torch.autograd.Function):
    """Makes room for the results and notes what a kernel would need; making room is no operation."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        result = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        # The weight multiplies what was sampled.
        _note_sampling(SAMPLING + 1, (value, locations, weights), (result,))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        results = tuple(torch.empty_like(one) for one in ctx.saved_tensors)
        # The weight gets a gradient of its own, too.
        _note_sampling(SAMPLING_BACK + 2, (*ctx.saved_tensors, gradient), results)
        return results


def _note_sampling(each: int, given: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> None:
    """Note so many multiply-adds for each sampled value; ``given`` begins with value, locations and weights."""
    value, _, weights, *_ = given
    if WorkCounter.running is not None:
        flops = 2 * each * int(weights.numel()) * int(value.shape[-1])
        WorkCounter.running.note(Work(flops, bytes_of(given) + bytes_of(results)))
