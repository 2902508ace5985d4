"""The world a process trains in: its rank, its device, and what it may do together with the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_detr.errors import ConfigError, nearest

T = TypeVar("T")
KINDS = ("cpu", "cuda")


def is_main_process() -> bool:
    """Return whether this process has rank 0, before it has joined the others."""
    return int(os.environ.get("RANK", "0")) == 0


def choose_device(name: str) -> torch.device:
    """Return the device that a user names: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the best there is.

    Raises:
        ConfigError: it is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and not number.isdecimal()) or name.endswith(":"):
        raise ConfigError(f"--device {name}: unknown{nearest(name, KINDS)}", f"known: auto, {', '.join(KINDS)}, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise ConfigError(
            f"--device {name}: PyTorch sees {count} CUDA devices", "use --device cpu, or install a CUDA build"
        )
    return torch.device(name)


@dataclass(frozen=True)
class World:
    """Made once at the start and passed down; nothing else asks a global for its rank.

    Attributes:
        rank: of this process, 0 first.
        size: number of processes.
        device: this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def from_environment(cls, device: str) -> World:
        """Join the group that a launcher announced in the environment, or be alone.

        Args:
            device: as for ``choose_device``; of several processes each takes the GPU of its own number.

        Raises:
            ConfigError: the device is unknown or not there.
        """
        alone = choose_device(device)
        kind = alone.type
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, alone)
        local = int(os.environ["LOCAL_RANK"])
        chosen = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        return cls(dist.get_rank(), size, chosen)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes; the input stays as it is."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(float(value), dtype=torch.float64, device=self.device)).item())

    def gather(self, item: T) -> Sequence[T]:
        """Return the items of all processes, by rank; on the main process only, elsewhere an empty list."""
        if self.size == 1:
            return [item]
        items: list[T | None] | None = [None] * self.size if self.is_main else None
        dist.gather_object(item, items, dst=0)
        return [] if items is None else items  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module that averages gradients over processes; alone, the model itself."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
