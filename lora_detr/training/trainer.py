"""The trainer: it owns what its annotations list and trains epoch by epoch, then evaluates, saves and logs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_detr.branches import BranchedDetector
from lora_detr.config.run import RunConfig
from lora_detr.data.loader import BatchLoader
from lora_detr.errors import CheckpointError, OutputError
from lora_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from lora_detr.evaluation.inference import collect
from lora_detr.exact_weights import load_exact
from lora_detr.json_value import JSON
from lora_detr.losses.criterion import Criterion
from lora_detr.models import TwoStageDetector
from lora_detr.structures import Batch, Images, Prediction
from lora_detr.training.averaging import WeightAverage
from lora_detr.training.checkpoint import LoadedCheckpoint, prune, save_checkpoint, set_best
from lora_detr.training.data import Splits, eval_loader, train_loader
from lora_detr.training.display import Display, figure
from lora_detr.training.distributed import World
from lora_detr.training.eval_results import write_results
from lora_detr.training.freezing import freeze, train_unfrozen
from lora_detr.training.metrics import RunningMean, append_line, append_row, epoch_record, step_record
from lora_detr.training.optim import build_optimizer, rate_factor, set_rates
from lora_detr.training.optimizer_state import flatten_optimizer, lay_out_like_parameters, unflatten_optimizer
from lora_detr.training.run_directory import RunDirectory
from lora_detr.training.seeding import own_state, restore_rng_state, rng_state
from lora_detr.training.step import NonFiniteLossError, Stepper, StepResult
from lora_detr.training.stopping import StopSignals, raise_if

# A picture takes a second or two, which is much where epochs are short.
SECONDS_BETWEEN_PICTURES = 60.0

if TYPE_CHECKING:
    from lora_detr.training.tensorboard import TensorBoardLog


class Trainer:
    """Train one run.

    Args:
        config: of the run, resolved.
        splits: its data.
        model: detector and branches, with initial weights.
        directory: where everything is written.
        world: ranks and device.
        display: shows progress.
    """

    # What is trained, and on what.
    config: RunConfig
    splits: Splits
    model: BranchedDetector[TwoStageDetector]
    average: WeightAverage | None
    criterion: Criterion
    # What trains it.
    world: World
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    loader: BatchLoader
    steps_per_epoch: int
    total_steps: int
    # Where it is written.
    directory: RunDirectory
    display: Display
    tensorboard: TensorBoardLog | None
    drawn: float | None
    # Training state; all of it is in a checkpoint.
    step: int
    means: RunningMean
    best: float
    kept: set[int]
    saved: Path | None
    # What asks it to end.
    signals: StopSignals

    def __init__(
        self,
        config: RunConfig,
        splits: Splits,
        model: BranchedDetector[TwoStageDetector],
        directory: RunDirectory,
        world: World,
        display: Display,
    ) -> None:
        self.config, self.splits, self.directory = config, splits, directory
        self.world, self.display = world, display
        self.model = model.to(world.device)
        freeze(self.model, config.train.freeze)
        decay = config.train.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.criterion = config.build_criterion()
        self.global_batch = config.train.batch_size * config.train.accumulate * world.size
        rate = config.train.optimizer.rate_for(self.global_batch)
        self.optimizer = build_optimizer(self.model, config.train.optimizer, rate)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.signals, self.means = StopSignals(), RunningMean()
        self.stepper = Stepper(world.wrap(self.model), self.criterion, self.optimizer, config, world, self.signals)
        self.loader = train_loader(splits, config, world)
        self.steps_per_epoch = math.ceil(len(self.loader) / config.train.accumulate)
        self.total_steps = self.steps_per_epoch * config.train.epochs
        if config.train.max_steps is not None:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        self.rate_factor = rate_factor(config.train.schedule, self.steps_per_epoch, self.total_steps)
        self.step, self.best, self.saved, self.tensorboard = 0, -math.inf, None, None
        self.kept, self.drawn = set(), None

    def fit(self) -> CocoMetrics | None:
        """Train until the last step; return the last evaluation, or None without a validation split.

        Raises:
            NumericalError: a loss is not finite; ``nan_report.json`` tells which, the last checkpoint is kept.
            OutputError: something cannot be written.
            Stopped: a signal asked for it; everything is saved.
        """
        metrics = None
        if self.config.train.tensorboard and self.world.is_main:
            from lora_detr.training.tensorboard import TensorBoardLog  # an optional package

            self.tensorboard = TensorBoardLog(self.directory.path / "tensorboard", self.step or None)
        self.display.begin(self.total_steps, self.step)
        try:
            with self.signals:
                while not self.is_done:
                    if not self._is_epoch_over:
                        self._train_epoch(self.step // self.steps_per_epoch)
                    metrics = self._end_epoch((self.step - 1) // self.steps_per_epoch)
        except RuntimeError as error:
            # A worker that dies is reported by PyTorch out of any line of this process.
            named = self.loader.worker_error(error)
            if named is None:
                raise
            raise named from error
        finally:
            self.display.end()
            self.loader.close()
            if self.tensorboard is not None:
                with contextlib.suppress(OutputError):  # must not hide why the run ended
                    self.tensorboard.close()
        return metrics

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and the evaluation behind the last one."""
        return self.step >= self.total_steps and not self._is_epoch_over

    @property
    def _is_epoch_over(self) -> bool:
        """Whether an epoch, or the run, is at its end and what belongs to the end is still to do."""
        ended = self.step % self.steps_per_epoch == 0 or self.step >= self.total_steps
        return ended and self.means.count > 0

    def _end_epoch(self, epoch: int) -> CocoMetrics | None:
        """Evaluate if it is time to, log, and save: in this order, since a checkpoint says that the lines are written.

        A process killed before it has saved goes on from an older checkpoint and writes the lines again.
        """
        last = self.step >= self.total_steps
        due = last or (epoch + 1) % self.config.evaluation.every == 0
        metrics = self.evaluate() if due else None
        means, self.means = self.means, RunningMean()
        self._log_epoch(epoch, means, metrics)
        if due or self._is_kept(self.step):
            self._save(metrics)
        if due:
            self._draw(last)
        return metrics

    def _train_epoch(self, epoch: int) -> None:
        """Train to the end of an epoch or of the run, from wherever in the epoch ``step`` stands."""
        train_unfrozen(self.model, self.config.train.freeze)
        first = self.step - epoch * self.steps_per_epoch
        self.loader.set_epoch(epoch, first * self.config.train.accumulate)
        for batches in self._groups():
            set_rates(self.optimizer, self.base_rates, self.rate_factor(self.step))
            try:
                result = self.stepper(batches, self.step)
            except NonFiniteLossError as error:
                self._report_non_finite(error)
                raise
            self.step += 1
            if self.average is not None and not result.skipped:
                self.average.update(self.model)
            self.means.add({"loss": result.loss, **{str(term.key): term.value for term in result.terms}})
            self._log_step(epoch, result)
            self.display.step(self.step, epoch, result.loss)
            # Alone, a signal that came behind the step counts too; among others it waits for the next agreement.
            self._stop_if(self.signals.received if self.world.size == 1 else result.signal)
            if self.step >= self.total_steps:
                break

    def _groups(self) -> Iterator[list[Batch]]:
        """Give the batches in lists of as many as are accumulated; the last list of an epoch may be shorter."""
        group: list[Batch] = []
        for batch in self.loader:
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
        detector = evaluated.eval().detector

        def predict(images: Images) -> Prediction:
            return detector(images).prediction  # type: ignore[no-any-return]

        evaluator = CocoEvaluator(self.splits.val)
        collect(
            predict,
            eval_loader(
                self.splits.val,
                self.config.deployment(self.splits.categories),
                self.world,
                batch_size=self.config.evaluation.batch_size,
                workers=0,
            ),
            evaluator,
            self.world.device,
            max_detections=self.config.evaluation.max_detections,
            progress=lambda images: self._stop_if(self.signals.agreed(self.world)),
            min_score=self.config.evaluation.min_score,
        )
        for rows in self.world.gather(evaluator.rows()):
            evaluator.add_rows(rows)
        if not self.world.is_main:
            return None
        metrics = evaluator.compute()
        write_results(self.directory.evaluation, metrics, evaluator, f"step-{self.step:08d}")
        return metrics

    @property
    def moment_bytes(self) -> int:
        """How large the two moments are that AdamW keeps of all that is trained, from the first update on."""
        return int(2 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad))

    @property
    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: weights, their average, and two moments of all that is trained."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return int(weights * (1 if self.average is None else 2) + self.moment_bytes)

    def restore(self, checkpoint: LoadedCheckpoint, source: Path) -> None:
        """Continue from a checkpoint: weights, optimiser, step, random state and best result.

        Raises:
            CheckpointError: weights or optimiser do not fit the model.
        """
        load_exact(self.model, checkpoint.model, source)
        state = checkpoint.state
        if self.average is not None:
            updates = state.get("ema_updates")
            if checkpoint.ema is None or not isinstance(updates, int):
                raise CheckpointError(f"{source}: holds no averaged weights, but `train.ema_decay` is set", code="K08")
            self.average.restore(checkpoint.ema, updates, source)
        plain = state["optimizer"]
        assert isinstance(plain, dict)
        self.optimizer.load_state_dict(unflatten_optimizer(checkpoint.optimizer, plain))
        lay_out_like_parameters(self.optimizer)
        random_states, best = state["rng"], state["best"]
        restore_rng_state(own_state(random_states, self.world, source))
        self.means = RunningMean.from_json(state.get("means"))
        kept = state.get("kept", [])
        assert isinstance(kept, list)
        self.kept = {step for step in kept if isinstance(step, int)}
        self.step = checkpoint.step
        self.best = float(best) if isinstance(best, int | float) else -math.inf
        self.saved = source

    def _save(self, metrics: CocoMetrics | None) -> None:
        """Save a checkpoint, point ``best`` at it if it is, then remove old ones."""
        improved = metrics is not None and metrics.values["AP"] > self.best
        if metrics is not None and improved:
            self.best = metrics.values["AP"]
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
            state={
                "config": self.config.model_dump(mode="json"),
                "categories": self.splits.categories.to_json(),
                "data": self.splits.fingerprints,
                "optimizer": plain,
                "rng": list[JSON](random_states),
                "means": self.means.to_json(),
                "best": self.best if math.isfinite(self.best) else None,
                "metrics": None if metrics is None else metrics.to_json(),
                "augment": self.splits.augment,
                "overfit": None if self.splits.augment else len(self.splits.train),
                "kept": list[JSON](sorted(self.kept)),
                "ema_updates": None if self.average is None else self.average.updates,
            },
            facts={"world_size": self.world.size},
        )
        if improved:
            set_best(self.directory.checkpoints, self.step)
        prune(self.directory.checkpoints, self.config.train.keep_last, self.kept, newest=self.step)

    def _stop_if(self, received: Signals | None) -> None:
        raise_if(received, self._save_together, self.directory.path, self.step)

    def _save_together(self) -> None:
        self._save(None)
        self.world.barrier()  # nobody leaves before the first process has written

    def _is_kept(self, step: int) -> bool:
        """Return whether the checkpoint of a step, which ends an epoch, is kept for good."""
        every = self.config.train.keep_every
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def _log_step(self, epoch: int, result: StepResult) -> None:
        due = self.step % self.config.train.log_every == 0 or self.step in (1, self.total_steps)
        if not self.world.is_main or not (due or result.skipped):
            return
        rates = {f"group{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        record = step_record(self.step, epoch, result.loss, result.terms, rates, result.gradient_norm, result.seconds)
        if result.skipped:
            record["skipped"] = True
            self.display.line(f"step {self.step}: gradient norm {result.gradient_norm}, update skipped")
        append_line(self.directory.metrics, record)
        if self.tensorboard is not None:
            self.tensorboard.step(record)

    def _log_epoch(self, epoch: int, means: RunningMean, metrics: CocoMetrics | None) -> None:
        if not self.world.is_main:
            return
        average = means.means()
        values = None if metrics is None else metrics.values
        rate = self.optimizer.param_groups[0]["lr"]
        last_layer = self.criterion.num_layers - 1
        record = epoch_record(epoch, self.step, average, last_layer, rate, _trainable(self.model), values)
        append_line(self.directory.log, record)
        loss = average.get("loss", math.nan)
        text = f"epoch {epoch + 1}/{self.config.train.epochs}  step {self.step}  loss {loss:.3f}"
        if metrics is not None:
            row = {"epoch": epoch + 1, "step": self.step, "time": int(time.time()), "loss": round(loss, 5), "lr": rate}
            append_row(self.directory.results, {**row, **metrics.values})
            self.display.evaluated(metrics.values["AP"])
            if self.tensorboard is not None:
                self.tensorboard.epoch(self.step, metrics.values)
            text += f"  AP {figure(metrics.values['AP'])}  AP50 {figure(metrics.values['AP50'])}"
        self.display.line(text)

    def _draw(self, last: bool) -> None:
        """Draw ``results.png``, not more than once in a while; a picture that cannot be written ends no run."""
        due = self.drawn is None or time.monotonic() - self.drawn >= SECONDS_BETWEEN_PICTURES
        if not self.world.is_main or not (last or due):
            return
        self.drawn = time.monotonic()
        try:
            from lora_detr.training.plots import write_results_picture  # matplotlib is slow to import

            write_results_picture(self.directory)
        except Exception as error:  # the drawing library has faults and settings of its own
            self.display.line(f"warning: results.png was not drawn: {error}")

    def _report_non_finite(self, error: NonFiniteLossError) -> None:
        if self.world.is_main:
            report = {
                "step": self.step,
                "message": error.message,
                "image_ids": list(error.image_ids),
                "terms": {str(term.key): term.value for term in error.terms},
            }
            self.directory.write_json("nan_report.json", report)


def _trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
