"""A process among those of a run: its rank, and the signals that ask it to end. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

# What schedulers send: SIGTERM when time is up or a job is pushed out, SIGUSR1 some time before (Slurm's --signal).
REQUEUE = (signal.SIGTERM, signal.SIGUSR1)
# Those, and Ctrl-C.
REQUESTS_TO_END = (*REQUEUE, signal.SIGINT)


def own_rank() -> int:
    """Return the number of this process among those of its launcher, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Give signals to a handler, and back to those before it afterwards.

    Outside the main thread, where Python allows no handler, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
