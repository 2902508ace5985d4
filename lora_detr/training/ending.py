"""How a run ends, and what it leaves about it: ``exit.json`` whatever happens, and errors that say what to do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lora_detr.errors import LoraDetrError, Stopped, WorkerError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.processes import PEER_GONE, REQUEUE, handled_by, process_count
from lora_detr.training.distributed import is_lost_peer
from lora_detr.training.trainer import Trainer


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, and its last evaluation if there was a validation split."""

    directory: Path
    metrics: CocoMetrics | None


def fit_to_the_end(trainer: Trainer) -> Finished:
    """Train, and write how it ended whatever happens."""
    code, kind, message = 1, "InternalError", "the process ended without a message"
    speaks = trainer.world.is_main
    try:
        if trainer.world.is_main:
            trainer.directory.exit.unlink(missing_ok=True)
        with naming_lack_of_memory():
            metrics = trainer.fit()
        trainer.world.barrier()
        code, kind, message = 0, "Done", "all steps done"
        return Finished(trainer.directory.path, metrics)
    except LoraDetrError as error:
        code, kind, message = error.exit_code, type(error).__name__, error.message
        # A fault of this process alone: the others will only find that it is gone.
        speaks = speaks or not (error.on_all_ranks or isinstance(error, Stopped))
        raise
    except Exception as error:
        if trainer.world.size > 1 and is_lost_peer(error):
            speaks = speaks and not trainer.directory.exit.exists()
            # Said first: while it listens for the others, the launcher may end this process too.
            code, kind, message = WorkerError.exit_code, WorkerError.__name__, PEER_GONE
            lost = _lost(trainer)
            code, kind, message = lost.exit_code, type(lost).__name__, lost.message
            raise lost from error
        message = repr(error)
        raise
    except KeyboardInterrupt:
        code, kind, message = 130, "Interrupted", "interrupted from the keyboard"
        raise
    finally:
        # A launcher that sees another process end first asks this one to end too: it is about to.
        with handled_by(signal.SIG_IGN, REQUEUE):
            saved = None if trainer.saved is None else trainer.saved.name
            if speaks and trainer.directory.path.is_dir():
                trainer.directory.write_exit(code, kind, trainer.world.rank, trainer.step, message, saved)
            trainer.world.close()


def _gone() -> WorkerError:
    error = WorkerError(PEER_GONE, "its own message says why", code="P06")
    # For the launcher, which would blame the one that failed first: this one, if the other has ended with 0.
    get_error_handler().record_exception(error)
    return error


def _lost(trainer: Trainer) -> WorkerError:
    """Return what to say of another process that is gone or silent."""
    try:
        silent = trainer.world.silent()
    except RuntimeError:  # whoever held what the processes shared is gone too
        silent = []
    if not silent:
        return _gone()
    ranks = ", ".join(map(str, silent))
    return WorkerError(
        f"rank {ranks} gives no sign of life at step {trainer.step}; the run cannot go on without it",
        f"continue with --resume {trainer.directory.path}; train.rank_timeout says how long to wait",
        code="P07",
    )


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn what gloo and NCCL raise when another process has gone into an error that says so.

    Raises:
        WorkerError: P06.
    """
    try:
        yield
    except Exception as error:
        if process_count() == 1 or not is_lost_peer(error):
            raise
        raise _gone() from error


# On the CPU memory runs out in PyTorch, in oneDNN, which does not say of what there was too little, or in the system.
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "Cannot allocate memory")


@contextlib.contextmanager
def naming_lack_of_memory(where: str = "") -> Iterator[None]:
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
