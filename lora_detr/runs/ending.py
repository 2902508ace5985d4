"""How a run ends, and what it leaves about it: ``exit.json`` whatever happens, and errors that say what to do."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from lora_detr.atomic_files import reporting
from lora_detr.errors import LoraDetrError, Stopped, WorkerError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.processes.faults import peer_gone, report_out_of_memory
from lora_detr.processes.process import PEER_GONE, REQUEUE, handled_by
from lora_detr.processes.world import is_lost_peer
from lora_detr.training.trainer import Trainer


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, and its last evaluation if there was a validation split."""

    directory: Path
    metrics: CocoMetrics | None


def run_to_completion(trainer: Trainer) -> Finished:
    """Train, and write how it ended whatever happens."""
    code, kind, message = 1, "InternalError", "the process ended without a message"
    speaks = trainer.world.is_main
    try:
        if trainer.world.is_main:
            with reporting(trainer.directory.exit):
                trainer.directory.exit.unlink(missing_ok=True)
        with report_out_of_memory():
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
                trainer.directory.write_exit(
                    code, kind, trainer.world.rank, trainer.step, message, saved, trainer.display.lost
                )
            trainer.world.close()


def _lost(trainer: Trainer) -> WorkerError:
    """Return what to say of another process that is gone or silent."""
    try:
        silent = trainer.world.silent()
    except RuntimeError:  # whoever held what the processes shared is gone too
        silent = []
    if not silent:
        return peer_gone()
    ranks = ", ".join(map(str, silent))
    return WorkerError(
        f"rank {ranks} gives no sign of life at step {trainer.step}; the run cannot continue without it",
        f"continue with --resume {trainer.directory.path}; train.rank_timeout sets how long to wait",
        code="P07",
    )
