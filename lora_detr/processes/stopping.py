"""Signals that ask a run to end: noted when they come, acted on between two steps, so that nothing is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import Tensor

from lora_detr.errors import Stopped
from lora_detr.processes.process import REQUESTS_TO_END, REQUEUE, handled_by
from lora_detr.processes.world import World


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT while a run trains; a second SIGINT ends the process at once.

    A handler only takes note: saving inside it could break a save that is under way, and a collective operation in it
    would wait for processes that got no signal.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        self._handling.enter_context(handled_by(self._note, REQUESTS_TO_END))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.close()

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
