"""Run a training from a resolved request to its last evaluation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.checkpoint import (
    CHECKPOINTS,
    best_step,
    clean_stale,
    has_checkpoints,
    load_latest,
    step_name,
)
from lora_detr.checkpoints.initial_weights import Initialised, build_from_weights, read_initial_weights
from lora_detr.checkpoints.opened import stored_config
from lora_detr.config.dump import dump_config
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.data.coco.verification import Verify
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.json_value import JSON
from lora_detr.losses.criterion import Criterion
from lora_detr.models import AnyDetector
from lora_detr.processes.faults import report_lost_ranks, report_out_of_memory
from lora_detr.processes.process import own_rank
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, read_splits
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.display import Display
from lora_detr.records.environment import environment
from lora_detr.records.metrics import append_line
from lora_detr.records.repair import repair
from lora_detr.records.run_directory import DATA_REPORT, RunDirectory, next_run, problems_kept
from lora_detr.records.tensorboard import require_tensorboard
from lora_detr.runs.data_change import compare_data, refuse_other_data
from lora_detr.runs.ending import Finished, run_to_completion
from lora_detr.runs.length import lengthened, with_length_of
from lora_detr.runs.rehearsal import estimate
from lora_detr.runs.request import Resolved
from lora_detr.runs.resumption import DATA, PROCESSES, allowed_changes, allows, changed, schedule_notes
from lora_detr.runs.summary import summary_lines
from lora_detr.structures import Matcher
from lora_detr.tensor_files import check_exact
from lora_detr.training.seeding import seed_everything
from lora_detr.training.trainer import Trainer


@report_lost_ranks()
def start(
    resolved: Resolved,
    output: Path | None,
    overfit: int | None,
    dry_run: bool,
    display: Display,
    *,
    auto_resume: bool = False,
    overrides: Sequence[str] = (),
    branch_matchers: Sequence[Matcher] | None = None,
) -> Finished:
    """Train from the beginning.

    Args:
        resolved: configuration and data.
        output: run directory; by default the next free one of the preset in ``runs``.
        overfit: train and evaluate on so many images.
        dry_run: print the summary, build everything, write nothing.
        display: shows progress.
        auto_resume: continue the run in ``output`` if it has a checkpoint, with the same settings.
        overrides: what may differ then all the same, as for ``resume``.
        branch_matchers: one for each branch, in place of those that the settings name. They are not stored with the
            run: give them again to ``resume``.

    Raises:
        LoraDetrError: whatever the user can cause; the run directory says how it ended.
    """
    config = resolved.loaded.config
    if auto_resume and not dry_run and output is not None and has_checkpoints(output / CHECKPOINTS):
        directory = RunDirectory(output)
        with _held(directory):
            return _resume(
                directory,
                partial(with_length_of, resolved.loaded),
                display,
                overrides,
                overfit,
                branch_matchers,
                may_be_done=True,
            )
    world = World.from_environment(config.train.device, config.train.rank_timeout)
    # What is free is decided once: a folder that the first process has made is no longer free for the others.
    path = world.gather(str(output or next_run(Path("runs"), resolved.run_name)))[0]
    directory = RunDirectory(Path(path))
    for note in resolved.notes:
        display.line(note)
    if dry_run and output is not None:
        directory.check_free(auto_resume)
    if dry_run or not world.is_main:
        return _start(resolved, directory, world, overfit, dry_run, display, branch_matchers)
    directory.create(resume=auto_resume)
    with directory.lock():
        return _start(resolved, directory, world, overfit, dry_run, display, branch_matchers)


def _start(
    resolved: Resolved,
    directory: RunDirectory,
    world: World,
    overfit: int | None,
    dry_run: bool,
    display: Display,
    branch_matchers: Sequence[Matcher] | None,
) -> Finished:
    config = resolved.loaded.config
    try:
        criterion = _criterion(config, branch_matchers, display)
        if config.train.tensorboard:
            require_tensorboard()
        with problems_kept(directory.path, wanted=world.is_main and not dry_run):
            splits = read_splits(resolved.data, config.data, overfit, verify=_verification(config, world))
        note = ""
        if overfit is None:
            loaded, note = lengthened(resolved.loaded, len(splits.train), world.size)
            resolved, config = replace(resolved, loaded=loaded), loaded.config
        seed_everything(config.train.seed, world.rank)
        model, initialised = _initial_model(config, splits)
        trainer = Trainer(config, splits, model, directory, world, display, criterion)
        with report_out_of_memory():
            cost = estimate(trainer, measure=dry_run)
            lines = summary_lines(trainer, resolved.preset, directory.path, initialised, cost)
        trainer.pace.expected = None if cost is None else cost.seconds
        for line in filter(None, (note, *lines)):
            display.line(line)
        if dry_run:
            return Finished(directory.path, None)
        if world.is_main:
            directory.prepare_for(trainer.checkpoint_bytes)
            # A run that was killed before its first checkpoint has left lines here, and perhaps a part of that one.
            clean_stale(directory.checkpoints)
            repair(directory, step=0, report=display.line)
            directory.write_text(RUN_SETTINGS, dump_config(config, resolved.loaded.origin))
            directory.add_command()
            directory.write_json("env.json", environment(world.device))
            directory.write_json(DATA_REPORT, splits.report())
            if initialised is not None:
                directory.write_json("weights.json", initialised.to_json())
    except BaseException:
        if not dry_run and world.is_main:
            # Nothing was trained: leave no empty folder that would block the next try.
            directory.discard()
        raise
    return run_to_completion(trainer)


def _criterion(config: RunConfig, branch_matchers: Sequence[Matcher] | None, display: Display) -> Criterion:
    if branch_matchers is not None:
        names = ", ".join(type(matcher).__name__ for matcher in branch_matchers)
        display.line(f"branches are matched by {names}, not by what the settings name")
    return config.build_criterion(branch_matchers)


def _verification(config: RunConfig, world: World) -> Verify:
    """Return what this process does with every image file: one process looks at them for all."""
    return config.data.verify if world.is_main else "none"


def _initial_model(config: RunConfig, splits: Splits) -> tuple[BranchedDetector[AnyDetector], Initialised | None]:
    if config.weights is None:
        return config.build_model(splits.categories.num_classes, load_weights=True), None
    return build_from_weights(config, splits.categories, read_initial_weights(config.weights))


@report_lost_ranks()
def resume(
    run: Path,
    changes: Mapping[str, object],
    display: Display,
    overrides: Sequence[str] = (),
    branch_matchers: Sequence[Matcher] | None = None,
) -> Finished:
    """Continue a run from its last checkpoint, possibly for longer or on another machine.

    Args:
        run: the run directory.
        changes: key path -> value of settings to change; see ``resumption.CHANGEABLE`` for those that may differ.
            New ``train.epochs`` without ``train.max_steps`` lift the limit of steps.
        display: shows progress.
        overrides: what may differ besides, by name: key paths, ``processes``, ``data``.
        branch_matchers: those that the run was started with, if any.

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
    with _held(directory):
        return _resume(directory, lambda stored: changed(stored, changes), display, overrides, None, branch_matchers)


def _held(directory: RunDirectory) -> contextlib.AbstractContextManager[None]:
    """Return what holds the folder of a run that goes on: every process reads, the main one also holds it."""
    directory.create(resume=True)
    return directory.lock() if own_rank() == 0 else contextlib.nullcontext()


def _resume(
    directory: RunDirectory,
    wanted: Callable[[RunConfig], RunConfig],
    display: Display,
    overrides: Sequence[str],
    overfit_wanted: int | None = None,
    branch_matchers: Sequence[Matcher] | None = None,
    *,
    may_be_done: bool = False,
) -> Finished:
    """Continue a run with the settings that ``wanted`` makes of its own.

    One that has done all its steps is at its end at once where that ``may_be_done``: a scheduler starts a job again
    that was killed behind its last checkpoint, and must hear that all is well.
    """
    run = directory.path
    if own_rank() == 0:
        clean_stale(directory.checkpoints)
    best_step(directory.checkpoints)  # a pointer that cannot be read would end the run when it next saves
    checkpoint, skipped = load_latest(directory.checkpoints)
    for error in skipped:
        display.line(f"skipped: {error.message}")
    if checkpoint is None:
        raise ConfigError(
            f"--resume {run}: holds no checkpoint", "start the run again in another directory", code="C10"
        )
    path = directory.checkpoints / step_name(checkpoint.step)
    stored = stored_config(checkpoint, path)
    config = wanted(stored)
    changes = allowed_changes(stored, config, overrides)
    overfit = checkpoint.state.overfit
    if overfit_wanted not in (None, overfit):
        raise ConfigError(f"--overfit {overfit_wanted}: the run has {overfit}", "start a new run", code="C07")
    world = World.from_environment(config.train.device, config.train.rank_timeout)
    _check_agreement(world, checkpoint.step)
    if config.data.path is None:
        raise ConfigError(f"--resume {run}: its config has no data path", code="C08")
    splits = read_splits(Path(config.data.path), config.data, overfit, verify=_verification(config, world))
    splits = replace(splits, recorded=checkpoint.state.data)
    # The files of images are read by the main process alone.
    fingerprints = world.gather(splits.fingerprints)[0]
    other_data = compare_data(checkpoint.state, splits, fingerprints)
    refuse_other_data(run, Path(config.data.path), other_data, checkpoint.state, splits, overrides)
    if other_data:
        was: JSON = checkpoint.state.data
        changes.append({"key": DATA, "was": was, "now": fingerprints, "differs": str(other_data), "override": True})
    seed_everything(config.train.seed, world.rank)
    build = partial(config.build_model, splits.categories.num_classes, load_weights=False)
    check_exact(build, checkpoint.model, path)
    model = build()
    criterion = _criterion(config, branch_matchers, display)
    trainer = Trainer(config, splits, model, directory, world, display, criterion)
    trainer.restore(checkpoint, path, allows(overrides, PROCESSES))
    if other_data:
        trainer.best = -math.inf  # it was measured on other images
    if world.is_main:
        trainer.settle()
    size = checkpoint.manifest.facts.get("world_size")
    if size != world.size:
        changes.append({"key": PROCESSES, "was": size, "now": world.size, "override": True})
    if trainer.is_done and not may_be_done:
        raise ConfigError(
            f"--resume {run}: the run has done all of its {trainer.plan.total_steps} steps",
            "raise --epochs or --max-steps",
        )
    if world.is_main:
        directory.prepare_for(trainer.checkpoint_bytes)
        repair(directory, step=trainer.step, report=display.line)
        directory.add_command()
        if note := directory.update_config(config, stored):
            display.line(f"note: {note}")
        if changes:
            append_line(directory.changes, {"step": trainer.step, "changes": changes})
    for change in changes:
        if change["override"]:
            what = change.get("differs", f"{change['was']} until now, {change['now']} from here on")
            display.line(f"note: overridden: {change['key']}: {what}")
    for note in (*other_data.notes(), *schedule_notes(trainer, stored)):
        display.line(note)
    display.line(f"resuming {run} at step {trainer.step} of {trainer.plan.total_steps}")
    return run_to_completion(trainer)


def _check_agreement(world: World, step: int) -> None:
    """Refuse to go on where processes have read different checkpoints, as with folders that are not shared.

    Raises:
        CheckpointError: names the steps.
    """
    steps = world.gather(step)
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes found different checkpoints: steps {', '.join(map(str, steps))} by rank",
            "the run directory must be one folder that all nodes share",
        )
