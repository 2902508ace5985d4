"""The trainer: it owns what its annotations list and trains epoch by epoch, then evaluates, saves and logs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import Signals

import torch

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.checkpoint import (
    LoadedCheckpoint,
    best_step,
    has_step,
    prune,
    save_checkpoint,
    set_best,
    step_name,
)
from lora_detr.checkpoints.optimizer_state import flatten_optimizer, restore_optimizer
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.data.loader import BatchLoader
from lora_detr.errors import CheckpointError, OutputError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.evaluation.detect import detect_all, plain_predictor
from lora_detr.evaluation.operating_point import measure
from lora_detr.json_value import JSON
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.report import LossReport
from lora_detr.losses.source import Source
from lora_detr.models import AnyDetector
from lora_detr.processes.stopping import StopSignals, raise_if
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, train_loader
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.display import Display
from lora_detr.records.eval_results import write_results
from lora_detr.records.metrics import RunningMean, pixel_counts
from lora_detr.records.run_directory import RunDirectory
from lora_detr.structures import Batch, PaddedTargets
from lora_detr.tensor_files import load_exact
from lora_detr.training.averaging import WeightAverage
from lora_detr.training.diagnostics import diagnose
from lora_detr.training.freezing import freeze, train_unfrozen
from lora_detr.training.nonfinite import NonFiniteLossError, keep_step
from lora_detr.training.optim import build_optimizer, rate_factor, set_rates
from lora_detr.training.pace import Pace
from lora_detr.training.plan import Plan
from lora_detr.training.recompute import recompute
from lora_detr.training.run_log import RunLog
from lora_detr.training.seeding import restore_own_state, rng_state
from lora_detr.training.step import Stepper, StepResult
from lora_detr.training.unreadable import UnreadableImages


class Trainer:
    """Train one run.

    Args:
        config: of the run, resolved.
        splits: its data.
        model: detector and branches, with initial weights.
        directory: where everything is written.
        world: ranks and device.
        display: shows progress.
        criterion: in place of the one that ``config`` describes.
    """

    # What is trained, and on what.
    config: RunConfig
    splits: Splits
    model: BranchedDetector[AnyDetector]
    average: WeightAverage | None
    criterion: Criterion
    # What trains it.
    world: World
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    loader: BatchLoader
    plan: Plan
    # Where it is written.
    directory: RunDirectory
    display: Display
    log: RunLog | None
    unreadable: UnreadableImages
    pace: Pace
    # Training state; all of it is in a checkpoint.
    step: int
    means: RunningMean
    best: float
    best_step: int | None
    kept: set[int]
    saved: Path | None
    # What asks it to end.
    signals: StopSignals

    def __init__(
        self,
        config: RunConfig,
        splits: Splits,
        model: BranchedDetector[AnyDetector],
        directory: RunDirectory,
        world: World,
        display: Display,
        criterion: Criterion | None = None,
    ) -> None:
        self.config, self.splits, self.directory = config, splits, directory
        self.world, self.display = world, display
        self.model = model.to(world.device)
        freeze(self.model, config.train.freeze)
        decay = config.train.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        recompute(self.model.detector, config.train.recompute)
        self.criterion = config.build_criterion() if criterion is None else criterion
        batch = config.train.batch_size * config.train.accumulate * world.size
        self.optimizer = build_optimizer(self.model, config.train.optimizer, config.train.optimizer.rate_for(batch))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.signals, self.means = StopSignals(), RunningMean()
        self.stepper = Stepper(world.wrap(self.model), self.criterion, self.optimizer, config, world, self.signals)
        self.loader = train_loader(splits, config, world)
        steps = math.ceil(len(self.loader) / config.train.accumulate)
        self.plan = Plan(steps, config.train.epochs, config.train.max_steps, batch)
        self.step, self.best, self.saved, self.kept = 0, -math.inf, None, set()
        self.best_step, self.log, self.unreadable, self.pace = None, None, UnreadableImages(display), Pace()

    def fit(self) -> CocoMetrics | None:
        """Train until the last step; return the last evaluation, or None without a validation split.

        Raises:
            NumericalError: a loss is not finite; ``nan_report.json`` tells which, the last checkpoint is kept.
            OutputError: something cannot be written.
            Stopped: a signal asked for it; everything is saved.
        """
        metrics = None
        self.log = self._open_log() if self.world.is_main else None
        self.display.begin(self.plan.total_steps, self.step)
        try:
            with self.signals:
                while not self.is_done:
                    if not self._is_epoch_over:
                        self._train_epoch(self.plan.epoch(self.step))
                    metrics = self._end_epoch(self.plan.epoch(self.step - 1))
        except RuntimeError as error:
            # A worker that dies is reported by PyTorch out of any line of this process.
            named = self.loader.worker_error(error)
            if named is None:
                raise
            raise named from error
        finally:
            self.display.end()
            self.loader.close()
            if self.log is not None:
                self.log.close()
        return metrics

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and the evaluation behind the last one."""
        return self.step >= self.plan.total_steps and not self._is_epoch_over

    @property
    def _is_epoch_over(self) -> bool:
        """Whether an epoch, or the run, is at its end and what belongs to the end is still to do."""
        ended = self.plan.is_end(self.step) or self.step >= self.plan.total_steps
        return ended and self.means.count > 0

    def _end_epoch(self, epoch: int) -> CocoMetrics | None:
        """Evaluate if it is time to, log, and save: in this order, since a checkpoint says that the lines are written.

        A process killed before it has saved goes on from an older checkpoint and writes the lines again.
        """
        self._share_unreadable()
        last = self.step >= self.plan.total_steps
        due = last or (epoch + 1) % self.config.evaluation.every == 0
        metrics = self.evaluate() if due else None
        means, self.means = self.means, RunningMean()
        if self.log is not None:
            self.log.epoch(self.step, epoch, means, self.optimizer.param_groups[0]["lr"], metrics)
        if due or self._is_kept(self.step):
            self._save(metrics)
        if due and self.log is not None:
            self.log.picture(last)
        return metrics

    def _train_epoch(self, epoch: int) -> None:
        """Train to the end of an epoch or of the run, from wherever in the epoch ``step`` stands."""
        train_unfrozen(self.model, self.config.train.freeze)
        self.loader.set_epoch(epoch, self.plan.place(self.step) * self.config.train.accumulate)
        factor = rate_factor(self.config.train.schedule, self.plan.steps_per_epoch, self.plan.length)
        for batches in self._groups():
            done = self.plan.done(self.step)
            set_rates(self.optimizer, self.base_rates, factor(done))
            self.stepper.progress = done / self.plan.length
            self._look_at_branches()
            try:
                result = self.stepper(batches, self.step)
            except NonFiniteLossError as error:
                self._report_non_finite(error)
                raise
            self.step += 1
            if self.average is not None and not result.skipped:
                self.average.update(self.model)
            terms = {str(term.key): term.value for term in result.terms}
            self.means.add({"loss": result.loss, **terms, **pixel_counts(batches)})
            self._log_step(epoch, result)
            self.display.step(self.step, epoch, result.loss)
            # Alone, a signal that came behind the step counts too; among others it waits for the next agreement.
            self._stop_if(self.signals.received if self.world.size == 1 else result.signal)
            if self.step >= self.plan.total_steps:
                break
            every = self.config.train.save_every
            if every is not None and self.step % every == 0 and not self._is_epoch_over:
                self._save(None)

    def _look_at_branches(self) -> None:
        """Have the first batch of the coming step diagnosed, if it is the turn of one."""
        every = self.config.train.diagnostics
        due = self.log is not None and every is not None and (self.step + 1) % every == 0
        self.stepper.observer = self._diagnose if due else None

    def _diagnose(self, sources: Sequence[Source], report: LossReport, targets: PaddedTargets) -> None:
        self.stepper.observer = None
        ffns = [self.model.detector.ffn(layer) for layer in range(self.criterion.num_layers)]
        found = diagnose(sources, report, targets, ffns, self.config.branch_names)
        assert self.log is not None
        self.log.diagnosis(self.step + 1, found)

    def _groups(self) -> Iterator[list[Batch]]:
        """Give the batches in lists of as many as are accumulated; the last list of an epoch may be shorter."""
        group: list[Batch] = []
        for batch in self.loader:
            self.unreadable.tell(self.loader.unreadable)
            group.append(batch)
            if len(group) == self.config.train.accumulate:
                yield group
                group = []
        if group:
            yield group

    def evaluate(self) -> CocoMetrics | None:
        """Evaluate the detector, without its branches, and write ``eval/``; None where there is no validation split.

        With averaged weights it is these that are evaluated, since it is these that will be deployed.
        """
        if self.splits.val is None:
            return None
        evaluated = self.model if self.average is None else self.average.model
        deployment = self.config.deployment(self.splits.categories)
        found = detect_all(
            plain_predictor(evaluated.eval().detector),
            self.splits.val,
            deployment,
            self.world,
            batch_size=self.config.evaluation.batch_size,
            workers=0,
            on_bad_data=self.config.data.on_bad_data,
            after_batch=lambda: self._stop_if(self.signals.agreed(self.world)),
        )
        if not self.world.is_main:
            return None
        self.unreadable.tell(found[None].left_out)
        metrics = measure(found, deployment)
        write_results(self.directory.evaluation, metrics, found[None], step_name(self.step))
        return metrics

    @property
    def moment_bytes(self) -> int:
        """How large the two moments are that AdamW keeps of all that is trained, from the first update on."""
        return int(2 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad))

    @property
    def weight_bytes(self) -> int:
        """How large the weights are, together with their average."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return int(weights * (1 if self.average is None else 2))

    @property
    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: weights, their average, and two moments of all that is trained."""
        return self.weight_bytes + self.moment_bytes

    def restore(self, checkpoint: LoadedCheckpoint, source: Path, other_processes: bool = False) -> None:
        """Continue from a checkpoint: weights, optimiser, step, random state and best result.

        Args:
            checkpoint: what was read.
            source: its folder.
            other_processes: resume with another number of processes; random draws then start again.

        Raises:
            CheckpointError: weights or optimiser do not fit the model.
            ConfigError: C08, the run was on another number of processes.
        """
        load_exact(self.model, checkpoint.model, source)
        state = checkpoint.state
        if self.average is not None:
            if checkpoint.ema is None or state.ema_updates is None:
                raise CheckpointError(f"{source}: holds no averaged weights, but `train.ema_decay` is set", code="K08")
            self.average.restore(checkpoint.ema, state.ema_updates, source)
        restore_optimizer(self.optimizer, checkpoint.optimizer, state.optimizer, source)
        restore_own_state(state.rng, self.world, source, other_processes, (self.config.train.seed, checkpoint.step))
        self.plan = self.plan.resume(state.plan, checkpoint.step)
        self.means = RunningMean.from_json(state.means)
        self.step, self.saved, self.kept = checkpoint.step, source, set(state.kept)
        self.best, self.best_step = -math.inf if state.best is None else state.best, state.best_step

    def settle(self) -> None:
        """Point ``best`` at the best checkpoint and remove old ones, in the main process only.

        On resuming this does what a process no longer did that was killed behind a save. A best checkpoint that is not
        there any more leaves the pointer as it is.
        """
        checkpoints = self.directory.checkpoints
        known = self.best_step is not None and has_step(checkpoints, self.best_step)
        if self.best_step is not None and known and best_step(checkpoints) != self.best_step:
            set_best(checkpoints, self.best_step)
        prune(checkpoints, self.config.train.keep_last, self.kept, newest=self.step)

    def _save(self, metrics: CocoMetrics | None) -> None:
        """Save a checkpoint, point ``best`` at it if it is, then remove old ones."""
        if metrics is not None and metrics.values["AP"] > self.best:
            self.best, self.best_step = metrics.values["AP"], self.step
        if self._is_kept(self.step):
            self.kept.add(self.step)
        random_states = self.world.gather(rng_state())
        if not self.world.is_main:
            return
        tensors, plain = flatten_optimizer(self.optimizer.state_dict())
        self.saved = save_checkpoint(
            self.directory.checkpoints,
            step=self.step,
            model=self.model.state_dict(),
            optimizer=tensors,
            ema=None if self.average is None else self.average.model.state_dict(),
            state=TrainingState(
                config=self.config.model_dump(mode="json"),
                categories=self.splits.categories.to_json(),
                data=self.splits.fingerprints,
                optimizer=plain,
                rng=list[JSON](random_states),
                plan=self.plan.to_json(),
                means=self.means.to_json(),
                best=self.best if math.isfinite(self.best) else None,
                best_step=self.best_step,
                metrics=None if metrics is None else metrics.to_json(),
                augment=self.splits.augment,
                overfit=None if self.splits.augment else len(self.splits.train),
                kept=tuple(sorted(self.kept)),
                ema_updates=None if self.average is None else self.average.updates,
            ),
            facts={"world_size": self.world.size},
        )
        self.settle()

    def _stop_if(self, received: Signals | None) -> None:
        raise_if(received, self._save_together, self.directory.path, self.step)

    def _save_together(self) -> None:
        self._save(None)
        self.world.barrier()  # nobody leaves before the first process has written

    def _is_kept(self, step: int) -> bool:
        """Return whether the checkpoint of a step, which ends an epoch, is kept for good."""
        every = self.config.train.keep_every
        return every is not None and self.plan.is_end(step, every)

    def _share_unreadable(self) -> None:
        """Bring together what the processes have skipped, and add it to the report on the data."""
        found = self.config.data.on_bad_data == "skip" and self.unreadable.share(self.loader.unreadable, self.world)
        if found and self.log is not None:
            self.log.data_report({**self.splits.report(), "unreadable": self.unreadable.to_json()})

    def _open_log(self) -> RunLog:
        return RunLog(
            self.directory,
            self.display,
            self.config.train,
            last_layer=self.criterion.num_layers - 1,
            weights=self.config.primary_weights,
            parameters=sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad),
            step=self.step,
        )

    def _log_step(self, epoch: int, result: StepResult) -> None:
        if slow := self.pace.add(result.seconds):
            self.display.line(slow)
        due = self.step % self.config.train.log_every == 0 or self.step in (1, self.plan.total_steps)
        if self.log is not None and (due or result.skipped):
            self.log.step(self.step, epoch, result, [group["lr"] for group in self.optimizer.param_groups])

    def _report_non_finite(self, error: NonFiniteLossError) -> None:
        if self.world.is_main:
            try:
                epoch = self.plan.epoch(self.step)
                keep_step(self.directory.path, error.seen, self.model, self.config, self.splits, epoch)
            except OutputError as failed:  # must not hide the error that it tells of
                self.display.line(f"warning: {failed.message}")
