"""What a run writes and shows while it trains: lines of steps and epochs, rows of evaluations, a picture."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_detr.errors import OutputError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.json_value import JSON
from lora_detr.recipe.run_config import TrainConfig
from lora_detr.records.display import Display, figure
from lora_detr.records.metrics import RunningMean, append_line, append_row, epoch_record, padded_share
from lora_detr.records.run_directory import DATA_REPORT, RunDirectory
from lora_detr.training.step import StepResult

if TYPE_CHECKING:
    from lora_detr.records.tensorboard import TensorBoardLog

# A picture takes a second or two, which is much where epochs are short.
SECONDS_BETWEEN_PICTURES = 60.0

# No room on the disk, in a quota, or below a limit of the size of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def step_record(step: int, epoch: int, result: StepResult, rates: Sequence[float]) -> dict[str, JSON]:
    """Build the line of a step: every term by source, layer and kind, before weighting.

    ``loss_hex`` is the exact float, so that two runs can be compared bit for bit with ``diff``.

    Args:
        step: optimiser steps done, this one included.
        epoch: 0 at first.
        result: of the step.
        rates: learning rate of each group of parameters.
    """
    record: dict[str, JSON] = {
        "step": step,
        "epoch": epoch,
        "loss": result.loss,
        "loss_hex": float(result.loss).hex(),
        "gradient_norm": result.gradient_norm,
        "lr": {f"group{i}": rate for i, rate in enumerate(rates)},
        "seconds": round(result.seconds, 4),
        "terms": {str(term.key): term.value for term in result.terms},
    }
    return {**record, "skipped": True} if result.skipped else record


class RunLog:
    """Writes for the main process; the others have none.

    A record that the disk has no room for is left out, with one warning and a count at the end, unless
    ``train.on_full_log`` is ``error``: a run of days is worth more than its lines. Any other fault ends the run.

    Args:
        directory: of the run.
        display: shows what is written.
        config: epochs, TensorBoard, and what a full disk does to logs.
        last_layer: the decoder layer whose terms DETR's plot scripts read.
        weights: of each kind of loss of the primary path.
        parameters: how many are trained.
        step: that the run goes on from; 0 at its start.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        config: TrainConfig,
        *,
        last_layer: int,
        weights: Mapping[str, float],
        parameters: int,
        step: int,
    ) -> None:
        self.directory, self.display, self.config = directory, display, config
        self.last_layer, self.weights, self.parameters = last_layer, weights, parameters
        self.left_out = 0
        self._tensorboard: TensorBoardLog | None = None
        self._drawn = time.monotonic()  # a run that is over within the minute is drawn once
        if config.tensorboard:
            from lora_detr.records.tensorboard import TensorBoardLog  # an optional package

            self._tensorboard = TensorBoardLog(directory.tensorboard, step or None)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Hold what writes a record; where the disk has no room for it, the rest of it is left out."""
        try:
            yield
        except OutputError as error:
            cause = error.__cause__
            if self.config.on_full_log == "error" or not isinstance(cause, OSError) or cause.errno not in _FULL:
                raise
            self.left_out += 1
            if self.left_out == 1:
                text = "training continues; log lines are dropped until there is space"
                self.display.line(f"warning: {error.message}; {text}")

    def step(self, step: int, epoch: int, result: StepResult, rates: Sequence[float]) -> None:
        """Write the line of a step.

        Raises:
            OutputError: it cannot be written.
        """
        record = step_record(step, epoch, result, rates)
        with self._room():
            if result.skipped:
                self.display.line(f"step {step}: gradient norm {result.gradient_norm}, update skipped")
            append_line(self.directory.metrics, record)
            if self._tensorboard is not None:
                self._tensorboard.step(record)

    def diagnosis(self, step: int, found: Mapping[str, JSON]) -> None:
        """Write the line of a step whose branches were looked at.

        Raises:
            OutputError: it cannot be written.
        """
        with self._room():
            append_line(self.directory.diagnostics, {"step": step, **found})

    def data_report(self, report: Mapping[str, object]) -> None:
        """Write the report on the data again, with what was found while training.

        Raises:
            OutputError: it cannot be written.
        """
        with self._room():
            self.directory.write_json(DATA_REPORT, report)

    def epoch(self, step: int, epoch: int, means: RunningMean, rate: float, metrics: CocoMetrics | None) -> None:
        """Write the line of an epoch, and the row of its evaluation if there was one.

        Raises:
            OutputError: one of them cannot be written.
        """
        average = means.means()
        values = None if metrics is None else metrics.values
        usage = {} if metrics is None or metrics.usage is None else metrics.usage.columns()
        record = epoch_record(epoch, step, average, self.last_layer, self.weights, rate, self.parameters, values)
        loss = average.get("loss", math.nan)
        text = f"epoch {epoch + 1}/{self.config.epochs}  step {step}  loss {loss:.3f}"
        with self._room():
            append_line(self.directory.log, record)
            if values is not None:
                row = {"epoch": epoch + 1, "step": step, "time": int(time.time()), "loss": round(loss, 5), "lr": rate}
                append_row(self.directory.results, {**row, **values, **usage})
                self.display.evaluated(values["AP"])
                if self._tensorboard is not None:
                    self._tensorboard.epoch(step, values)
                text += f"  AP {figure(values['AP'])}  AP50 {figure(values['AP50'])}"
                if values["AP"] < 0:
                    text += "  (-: the validation split has no object to measure)"
            padding = padded_share(average)
            self.display.line(text if math.isnan(padding) else f"{text}  padding {padding:.2f}")

    def picture(self, last: bool) -> None:
        """Draw ``results.png``, not more than once in a while; a picture that cannot be written ends no run."""
        if not last and time.monotonic() - self._drawn < SECONDS_BETWEEN_PICTURES:
            return
        self._drawn = time.monotonic()
        try:
            draw(self.directory)
        except Exception as error:  # the drawing library has faults and settings of its own
            self.display.line(f"warning: results.png was not drawn: {error}")

    def close(self) -> None:
        """Write what is held back for TensorBoard, and report how many records are missing.

        It must not hide why the run ended, so it raises nothing.
        """
        if self._tensorboard is not None:
            with contextlib.suppress(OutputError):
                self._tensorboard.close()
        if self.left_out:
            self.display.line(f"warning: the disk was full: {self.left_out} records are missing in the logs")


def draw(directory: RunDirectory) -> None:
    """Draw ``results.png`` of a run."""
    from lora_detr.records.plots import write_results_picture  # matplotlib is slow to import

    write_results_picture(directory)
