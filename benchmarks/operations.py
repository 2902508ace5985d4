"""Count the tensor operations of a forward and a backward pass, and those that make the host wait for the device.

Counts do not depend on the machine, and on a GPU they are what small work costs: each operation is a kernel to launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lora_detr.ops.host import HostCopies

BOOLEAN_INDEX = "index by a mask"
TO_HOST = "copy to the host"
WAITING = frozenset(
    {
        BOOLEAN_INDEX,
        TO_HOST,
        "aten::_local_scalar_dense",  # what item(), float() and the truth of a tensor come to
        "aten::_unique2",
        "aten::bincount",
        "aten::equal",
        "aten::is_nonzero",
        "aten::item",
        "aten::masked_select",
        "aten::nonzero",
        "aten::repeat_interleave",  # as an operation only where the repeats are a tensor
        "aten::unique_consecutive",
        "aten::unique_dim",
    }
)
"""Operations whose result, or its shape, the host must know before it goes on."""

INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
READING = {"tolist", "numpy", "__array__"}


class OpCounter(TorchDispatchMode):
    """Counts the tensor operations that reach the dispatcher, by name.

    Attributes:
        names: how often each operation was seen, as ``aten::add``; indexing by a mask and copies from another device
            to the host have names of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[_name(func, args, result)] += 1
        return result


class ReadCounter(TorchFunctionMode):
    """Counts the calls that make Python or numpy values of a whole tensor, which on a CPU are no operations.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in READING
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Cost:
    """What a total and its gradients took.

    Attributes:
        total: its value.
        forward_names: operations by name.
        backward_names: likewise, of the backward pass.
        copies: through ``lora_detr.ops.host``.
        reads: whole tensors that were made values of Python or numpy, on a CPU too.
    """

    total: float
    forward_names: Counter[str]
    backward_names: Counter[str]
    copies: int
    reads: int

    @property
    def forward(self) -> int:
        """Number of operations of the forward pass."""
        return self.forward_names.total()

    @property
    def backward(self) -> int:
        """Number of operations of the backward pass."""
        return self.backward_names.total()

    @property
    def waiting(self) -> dict[str, int]:
        """Those operations of both passes that are ``WAITING``, by name."""
        names = self.forward_names + self.backward_names
        return {name: count for name, count in names.items() if name in WAITING}

    @property
    def host_copies(self) -> int:
        """How often the host would wait for a GPU: operations that wait, and tensors that are read whole."""
        return sum(self.waiting.values()) + self.reads


def cost_of(total: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Cost:
    """Count what it takes to compute a scalar, and its gradients.

    Args:
        total: computes it; called once.
        leaves: whose gradients are taken; one that the total does not depend on is left out.
    """
    before = HostCopies.count
    with ReadCounter() as reads, OpCounter() as forward:
        value = total()
    with OpCounter() as backward:
        torch.autograd.grad(value, leaves, allow_unused=True)
    return Cost(value.item(), forward.names, backward.names, HostCopies.count - before, reads.count)


def _name(func: Any, args: Sequence[Any], result: Any) -> str:
    name: str = func._schema.name
    if name in INDEXING and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        return BOOLEAN_INDEX
    if name == "aten::_to_copy" and result.device.type == "cpu" != args[0].device.type:
        return TO_HOST
    return name
