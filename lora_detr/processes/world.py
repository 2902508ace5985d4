"""The world a process trains in: its rank, its device, and what it may do together with the others."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_detr.errors import ConfigError, WorkerError, nearest

T = TypeVar("T")
KINDS = ("cpu", "cuda")


# What gloo and NCCL say when another process is gone, or silent for longer than they wait.
_GONE = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "remote process exited", "NCCL")
# Seconds between two signs of life of a process. No load for the store; and the four that ``silent`` waits for fit into
# the time that a launcher leaves this process once another has ended (GRACE).
SIGN_SECONDS = 0.3
# What they say when processes cannot be joined at all.
_IN_USE = ("eaddrinuse", "address already in use")
_NO_INTERFACE = ("ifa != nullptr", "find address for", "find interface", "no socket interface", "resolve hostname")
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SILENT = ("Timed out waiting", "timed out", "timeout")


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error says that another process of the run is gone or silent, so that this one cannot go on."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in (*_GONE, *_SILENT))
    )


def visible_gpus() -> int:
    """Return how many CUDA devices PyTorch sees and can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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
    count = visible_gpus()
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
    def from_environment(cls, device: str, timeout: float = 1800.0) -> World:
        """Join the group that a launcher announced in the environment, or be alone.

        Args:
            device: as for ``choose_device``; of several processes each takes the GPU of its own number.
            timeout: seconds that a process waits for the others before it gives up.

        Raises:
            ConfigError: the device is unknown or not there.
            WorkerError: P09, the processes cannot reach each other.
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
        _join("nccl" if kind == "cuda" else "gloo", timeout)
        rank = dist.get_rank()
        _start_signs(rank)
        return cls(rank, size, chosen)

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
        """Return the items of all processes, by rank, on every process."""
        if self.size == 1:
            return [item]
        items: list[T | None] = [None] * self.size
        dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def silent(self) -> list[int]:
        """Return the other ranks that give no sign of life, after listening for a moment."""
        if self.size == 1:
            return []
        # Whoever held the store may be what is gone; this process is about to end, and need not wait for it.
        dist.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=5))
        store = _shared_store()
        before = _signs(store, self.size)
        time.sleep(4 * SIGN_SECONDS)
        pairs = enumerate(zip(before, _signs(store, self.size), strict=True))
        return [rank for rank, (old, new) in pairs if old == new and rank != self.rank]

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


def _join(backend: str, timeout: float) -> None:
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (OSError, RuntimeError, ValueError) as error:
        found = unreachable(error)
        if found is None:
            raise
        raise found from error


def unreachable(error: BaseException) -> WorkerError | None:
    """Return why processes cannot be joined, or None if another one is gone, which has a fault of its own."""
    text = str(error)
    port = os.environ.get("MASTER_PORT", "")
    if any(part in text.lower() for part in _IN_USE):
        return WorkerError(
            f"port {port} (MASTER_PORT) is in use by another program",
            "set MASTER_PORT to a free port, or leave it to the launcher: torchrun --standalone",
            code="P09",
        )
    if any(part in text for part in _NO_INTERFACE):
        named = [f"{name} is {os.environ[name]}" for name in _INTERFACES if name in os.environ]
        found = " and ".join(named) or f"{' and '.join(_INTERFACES)} are not set"
        return WorkerError(
            f"no network interface leads to the other processes ({found})",
            f"set {_INTERFACES[0]} to one that is up (ip addr lists them); a container may lack its loopback, lo",
            code="P09",
        )
    if is_lost_peer(error):
        return None
    reason = text.rpartition("] ")[2].strip().splitlines() or [type(error).__name__]
    place = f"{os.environ.get('MASTER_ADDR', '')}:{port}"
    return WorkerError(
        f"the processes cannot be joined at {place} (MASTER_ADDR and MASTER_PORT): {reason[0]}",
        "correct the variables that the launcher sets, and its network",
        code="P09",
    )


def _shared_store() -> Any:
    """Return what the processes of the group share; the launcher holds it, so that it outlives any of them."""
    # A connection of its own: another thread may be waiting on the group's.
    return dist.distributed_c10d._get_default_store().clone()


def _signs(store: Any, size: int) -> list[int]:
    return [store.add(f"sign of life/{rank}", 0) for rank in range(size)]


def _start_signs(rank: int) -> None:
    """Count up in the background for as long as this process lives; a process that is stopped or gone does not."""
    ended = threading.Event()
    store, launcher = _shared_store(), os.getppid()
    thread = threading.Thread(target=_give_signs, args=(store, rank, ended, launcher), daemon=True)
    thread.start()

    def end() -> None:
        # The interpreter must not vanish below a call into the store: that aborts the process.
        ended.set()
        thread.join(timeout=5)

    atexit.register(end)


def _give_signs(store: Any, rank: int, ended: threading.Event, launcher: int) -> None:
    while not ended.wait(SIGN_SECONDS):
        if os.getppid() != launcher:
            # Nobody is left to end this process, so it asks itself to save and go.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(RuntimeError):  # whoever held the store has gone
            store.add(f"sign of life/{rank}", 1)
