"""A process among those of a run: its rank, and the signals that ask it to end. Imports no torch."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

# What schedulers send: SIGTERM when time is up or a job is pushed out, SIGUSR1 some time before (Slurm's --signal).
REQUEUE = (signal.SIGTERM, signal.SIGUSR1)
# Those, and Ctrl-C.
REQUESTS_TO_END = (*REQUEUE, signal.SIGINT)
# What a process says that fails only because another one has.
PEER_GONE = "another process of the run is gone"


def own_rank() -> int:
    """Return the number of this process among those of its launcher, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes its launcher has started, 1 where it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def may_be_restarted() -> bool:
    """Return whether the launcher of this process starts all processes again when one fails (torchrun)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def launcher_may_end_first() -> bool:
    """Return whether the end of this process has its launcher end the first one too: torchrun, on the first machine."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("GROUP_RANK", "0") == "0"


def restarts_share_store() -> bool:
    """Return whether processes that are started again would find what those before them left in a shared store.

    torchrun keeps one store for all its starts unless told otherwise. New processes then call at addresses of old ones.
    """
    return may_be_restarted() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def tasks_without_launcher() -> int:
    """Return how many tasks of a Slurm step run this same command and know nothing of each other; 0 if none do."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return tasks if tasks > 1 and "RANK" not in os.environ else 0


def init_worker(worker: int) -> None:
    """Prepare a process that reads images for the main one, as ``DataLoader`` calls it.

    Signals are left to the main process: one sent to the whole group must not take away what it still reads from. What
    was there before is left out of the search for reference cycles, which would write into all of it, and so copy
    memory that the processes share.

    Args:
        worker: its number.
    """
    for number in REQUESTS_TO_END:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()


def end_with_parent() -> None:
    """End this process as soon as its standard input ends: that of a pipe does when the process at its other end dies.

    Nothing must be written into the pipe.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)
        os._exit(1)  # no cleaning up: whoever waited for it is gone

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def handled_by(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, signals: Sequence[signal.Signals]
) -> Iterator[None]:
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


def stop_requested(within: float) -> bool:
    """Wait until a signal asks this process to end; return whether one came.

    Args:
        within: seconds to wait at most.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    deadline = time.monotonic() + within
    with handled_by(note, REQUESTS_TO_END):
        while not asked and time.monotonic() < deadline:
            time.sleep(0.05)
    return asked
