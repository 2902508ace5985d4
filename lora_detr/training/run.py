"""Run a training from a resolved request to its last evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_detr.branches import BranchedDetector
from lora_detr.config.dump import dump_config
from lora_detr.config.run import RunConfig
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.errors import ConfigError, LoraDetrError, WorkerError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.models import TwoStageDetector
from lora_detr.processes import own_rank
from lora_detr.training.checkpoint import clean_stale, load_latest
from lora_detr.training.data import Splits, read_splits
from lora_detr.training.display import Display
from lora_detr.training.distributed import World, is_lost_peer
from lora_detr.training.initial_weights import Initialised, build_from_weights, read_initial_weights
from lora_detr.training.metrics import cut_back
from lora_detr.training.opened import stored_config
from lora_detr.training.request import Resolved
from lora_detr.training.resumption import changed, schedule_notes
from lora_detr.training.run_directory import RunDirectory, environment, next_run
from lora_detr.training.seeding import seed_everything
from lora_detr.training.summary import summary_lines
from lora_detr.training.tensorboard import require_tensorboard
from lora_detr.training.trainer import Trainer


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, and its last evaluation if there was a validation split."""

    directory: Path
    metrics: CocoMetrics | None


def start(resolved: Resolved, output: Path | None, overfit: int | None, dry_run: bool, display: Display) -> Finished:
    """Train from the beginning.

    Args:
        resolved: configuration and data.
        output: run directory; by default the next free one of the preset in ``runs``.
        overfit: train and evaluate on so many images.
        dry_run: print the summary, build everything, write nothing.
        display: shows progress.

    Raises:
        LoraDetrError: whatever the user can cause; the run directory says how it ended.
    """
    config = resolved.loaded.config
    world = World.from_environment(config.train.device, config.train.rank_timeout)
    directory = RunDirectory(output or next_run(Path("runs"), resolved.run_name))
    for note in resolved.notes:
        display.line(note)
    if dry_run and output is not None:
        directory.check_free()
    if dry_run or not world.is_main:
        return _start(resolved, directory, world, overfit, dry_run, display)
    directory.create(resume=False)
    with directory.lock():
        return _start(resolved, directory, world, overfit, dry_run, display)


def _start(
    resolved: Resolved, directory: RunDirectory, world: World, overfit: int | None, dry_run: bool, display: Display
) -> Finished:
    config = resolved.loaded.config
    try:
        if config.train.tensorboard:
            require_tensorboard()
        splits = read_splits(resolved.data, config.data, overfit)
        seed_everything(config.train.seed, world.rank)
        model, initialised = _initial_model(config, splits)
        trainer = Trainer(config, splits, model, directory, world, display)
        with naming_lack_of_memory():
            lines = summary_lines(trainer, resolved.preset, directory.path, initialised, measure=dry_run)
        for line in lines:
            display.line(line)
        if dry_run:
            return Finished(directory.path, None)
        if world.is_main:
            directory.prepare_for(trainer.checkpoint_bytes)
            directory.write_text(RUN_SETTINGS, dump_config(config, resolved.loaded.origin))
            directory.add_command()
            directory.write_json("env.json", environment(world.device))
            directory.write_json("data_report.json", splits.report())
            if initialised is not None:
                directory.write_json("weights.json", initialised.to_json())
    except BaseException:
        if not dry_run and world.is_main:
            # Nothing was trained: leave no empty folder that would block the next try.
            directory.discard()
        raise
    return _fit(trainer)


def _initial_model(config: RunConfig, splits: Splits) -> tuple[BranchedDetector[TwoStageDetector], Initialised | None]:
    if config.weights is None:
        return config.build_model(splits.categories.num_classes, load_weights=True), None
    return build_from_weights(config, splits.categories, read_initial_weights(Path(config.weights)))


def resume(run: Path, changes: Mapping[str, object], display: Display) -> Finished:
    """Continue a run from its last checkpoint, possibly for longer or on another machine.

    Args:
        run: the run directory.
        changes: key path -> value of settings to change; see ``resumption.changed`` for those that may differ.
            New ``train.epochs`` without ``train.max_steps`` lift the limit of steps.
        display: shows progress.

    Raises:
        ConfigError: there is nothing to resume, nothing left to do, or a change would make it another run.
        LoraDetrError: whatever else the user can cause.
    """
    if not run.is_dir():
        found = "is a file" if run.exists() else "no such folder"
        raise ConfigError(f"--resume {run}: {found}", "give the folder that train printed as output", code="C10")
    directory = RunDirectory(run)
    if not directory.checkpoints.is_dir():
        raise ConfigError(
            f"--resume {run}: not a run directory (it has no checkpoints folder)",
            "give the folder that train printed as output",
            code="C10",
        )
    directory.create(resume=True)
    # Every process reads; the main one also holds the folder and cleans up in it.
    with directory.lock() if own_rank() == 0 else contextlib.nullcontext():
        return _resume(directory, changes, display)


def _resume(directory: RunDirectory, changes: Mapping[str, object], display: Display) -> Finished:
    run = directory.path
    if own_rank() == 0:
        clean_stale(directory.checkpoints)
    checkpoint, skipped = load_latest(directory.checkpoints)
    for error in skipped:
        display.line(f"skipped: {error.message}")
    if checkpoint is None:
        raise ConfigError(f"--resume {run}: holds no checkpoint", "start the run anew in another directory", code="C10")
    path = directory.checkpoints / f"step-{checkpoint.step:08d}"
    stored = stored_config(checkpoint, path)
    config = changed(stored, changes)
    world = World.from_environment(config.train.device, config.train.rank_timeout)
    overfit = None if checkpoint.state.get("augment", True) else _overfit_count(checkpoint.state)
    if config.data.path is None:
        raise ConfigError(f"--resume {run}: its config names no data", code="C08")
    splits = read_splits(Path(config.data.path), config.data, overfit)
    if checkpoint.state.get("data") != splits.fingerprints:
        raise ConfigError(
            f"--resume {run}: {config.data.path} is not what the run started on (ids or sizes of its images differ)",
            "restore the data, or start a new run",
            code="C08",
        )
    seed_everything(config.train.seed, world.rank)
    model = config.build_model(splits.categories.num_classes, load_weights=False)
    trainer = Trainer(config, splits, model, directory, world, display)
    trainer.restore(checkpoint, path)
    if trainer.is_done:
        raise ConfigError(
            f"--resume {run}: the run has done all of its {trainer.total_steps} steps",
            "raise --epochs or --max-steps",
        )
    if world.is_main:
        directory.prepare_for(trainer.checkpoint_bytes)
        cut_back(directory.metrics, directory.log, directory.results, step=trainer.step)
        directory.add_command()
        directory.update_config(config, stored)
    for note in schedule_notes(trainer, stored):
        display.line(note)
    display.line(f"resuming {run} at step {trainer.step} of {trainer.total_steps}")
    return _fit(trainer)


def _overfit_count(state: Mapping[str, object]) -> int:
    """Return on how many images a run without augmentation was started."""
    count = state.get("overfit")
    assert isinstance(count, int)
    return count


@contextlib.contextmanager
def naming_lack_of_memory() -> Iterator[None]:
    """Turn what PyTorch and Python raise when memory runs out into an error that says what to do.

    Raises:
        WorkerError: P19.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU PyTorch raises a plain RuntimeError.
        named = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not named:
            raise
        remedy = "lower --batch-size (raise --accum to keep the global batch)"
        raise WorkerError("out of memory", remedy, code="P19") from error


def _fit(trainer: Trainer) -> Finished:
    """Train, and write how it ended whatever happens."""
    code, kind, message = 1, "InternalError", "the process ended without a message"
    try:
        with naming_lack_of_memory():
            metrics = trainer.fit()
        trainer.world.barrier()
        code, kind, message = 0, "Done", "all steps done"
        return Finished(trainer.directory.path, metrics)
    except LoraDetrError as error:
        code, kind, message = error.exit_code, type(error).__name__, error.message
        raise
    except Exception as error:
        if trainer.world.size > 1 and is_lost_peer(error):
            # Said first: while it listens for the others, the launcher may end this process too.
            code, kind, message = WorkerError.exit_code, WorkerError.__name__, "another process of the run is gone"
            lost = _lost(trainer)
            code, kind, message = lost.exit_code, type(lost).__name__, lost.message
            raise lost from error
        message = repr(error)
        raise
    except KeyboardInterrupt:
        code, kind, message = 130, "Interrupted", "interrupted from the keyboard"
        raise
    finally:
        saved = None if trainer.saved is None else trainer.saved.name
        if trainer.world.is_main and trainer.directory.path.is_dir():
            trainer.directory.write_exit(code, kind, trainer.world.rank, trainer.step, message, saved)
        trainer.world.close()


def _lost(trainer: Trainer) -> WorkerError:
    """Return what to say of another process that is gone or silent."""
    try:
        silent = trainer.world.silent()
    except RuntimeError:  # whoever held what the processes shared is gone too
        silent = []
    if not silent:
        return WorkerError("another process of the run is gone", "its own message says why", code="P06")
    ranks = ", ".join(map(str, silent))
    return WorkerError(
        f"rank {ranks} gives no sign of life at step {trainer.step}; the run cannot go on without it",
        f"continue with --resume {trainer.directory.path}; train.rank_timeout says how long to wait",
        code="P07",
    )
