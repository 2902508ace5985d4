"""Faults that PyTorch raises in its own words: lost processes and lack of memory, as errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lora_detr.errors import WorkerError
from lora_detr.processes.process import PEER_GONE, process_count
from lora_detr.processes.world import is_lost_peer


def peer_gone() -> WorkerError:
    """Return the error of a process that fails because another one is gone, and record it for the launcher."""
    error = WorkerError(PEER_GONE, "see its own message", code="P06")
    # For the launcher, which would blame the one that failed first: this one, if the other has ended with 0.
    get_error_handler().record_exception(error)
    return error


@contextlib.contextmanager
def report_lost_ranks() -> Iterator[None]:
    """Turn what gloo and NCCL raise when another process has gone into an error that says so.

    Raises:
        WorkerError: P06.
    """
    try:
        yield
    except Exception as error:
        if process_count() == 1 or not is_lost_peer(error):
            raise
        raise peer_gone() from error


# On the CPU memory runs out in PyTorch, in oneDNN, which does not say of what there was too little, or in the system.
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "Cannot allocate memory")


@contextlib.contextmanager
def report_out_of_memory(where: str = "") -> Iterator[None]:
    """Turn what PyTorch and Python raise when memory runs out into an error that says what to do.

    Args:
        where: stands behind the message, with a blank before it.

    Raises:
        WorkerError: P19.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in text for part in _NO_MEMORY)):
            raise
        remedy = "lower --batch-size (raise --accum to keep the global batch), or try --recompute encoder"
        raise WorkerError(f"out of memory{where}", remedy, code="P19") from error
