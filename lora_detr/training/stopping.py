"""Signals that ask a run to end: noted when they come, acted on between two steps, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from lora_detr.errors import Stopped
from lora_detr.training.distributed import World

# What schedulers send: SIGTERM when time is up or a job is pushed out, SIGUSR1 some time before (Slurm's --signal).
REQUEUE = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT while a run trains; a second SIGINT ends the process at once.

    A handler only takes note: saving inside it could break a save that is under way, and a collective operation in it
    would wait for processes that got no signal. Outside the main thread, where Python allows no handler, it does
    nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (*REQUEUE, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def flags(self, device: torch.device) -> Tensor:
        """Return [2], 1 where this process was asked to be requeued, and to be interrupted."""
        values = [float(self.received in REQUEUE), float(self.received is signal.SIGINT)]
        return torch.tensor(values, device=device)

    def agreed(self, world: World) -> signal.Signals | None:
        """Return the signal that any process got, or None; all processes must ask at the same point."""
        return named(world.sum(self.flags(world.device)).tolist()) if world.size > 1 else self.received


def named(flags: list[float]) -> signal.Signals | None:
    """Return the signal that summed flags stand for."""
    requeue, interrupt = flags
    return signal.SIGTERM if requeue else signal.SIGINT if interrupt else None


def raise_if(received: signal.Signals | None, save: Callable[[], object], run: Path, step: int) -> None:
    """Save and end the run if a signal asked for it.

    Args:
        received: the signal, agreed between all processes.
        save: writes a checkpoint.
        run: its directory.
        step: that the checkpoint is of.

    Raises:
        Stopped: after saving.
    """
    if received is not None:
        save()
        message = f"stopped on {received.name} at step {step}, which is saved; continue with --resume {run}"
        raise Stopped(message, received == signal.SIGINT)
