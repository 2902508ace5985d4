"""What a run writes and shows while it trains: lines of steps and epochs, rows of evaluations, a picture."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_detr.errors import OutputError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.json_value import JSON
from lora_detr.records.display import Display, figure
from lora_detr.records.metrics import (
    RunningMean,
    append_line,
    append_row,
    epoch_record,
    padded_share,
    step_record,
)
from lora_detr.records.run_directory import RunDirectory
from lora_detr.training.step import StepResult

if TYPE_CHECKING:
    from lora_detr.records.tensorboard import TensorBoardLog

# A picture takes a second or two, which is much where epochs are short.
SECONDS_BETWEEN_PICTURES = 60.0


class RunLog:
    """Writes for the main process; the others have none.

    Args:
        directory: of the run.
        display: shows what is written.
        epochs: of the run.
        last_layer: the decoder layer whose terms DETR's plot scripts read.
        weights: of each kind of loss of the primary path.
        parameters: how many are trained.
        tensorboard: also write for TensorBoard.
        step: that the run goes on from; 0 at its start.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        *,
        epochs: int,
        last_layer: int,
        weights: Mapping[str, float],
        parameters: int,
        tensorboard: bool,
        step: int,
    ) -> None:
        self.directory, self.display = directory, display
        self.epochs, self.last_layer, self.weights, self.parameters = epochs, last_layer, weights, parameters
        self._tensorboard: TensorBoardLog | None = None
        self._drawn: float | None = None
        if tensorboard:
            from lora_detr.records.tensorboard import TensorBoardLog  # an optional package

            self._tensorboard = TensorBoardLog(directory.path / "tensorboard", step or None)

    def step(self, step: int, epoch: int, result: StepResult, rates: list[float]) -> None:
        """Write the line of a step.

        Raises:
            OutputError: it cannot be written.
        """
        named = {f"group{i}": rate for i, rate in enumerate(rates)}
        record = step_record(step, epoch, result.loss, result.terms, named, result.gradient_norm, result.seconds)
        if result.skipped:
            record["skipped"] = True
            self.display.line(f"step {step}: gradient norm {result.gradient_norm}, update skipped")
        append_line(self.directory.metrics, record)
        if self._tensorboard is not None:
            self._tensorboard.step(record)

    def diagnosis(self, step: int, found: Mapping[str, JSON]) -> None:
        """Write the line of a step whose branches were looked at.

        Raises:
            OutputError: it cannot be written.
        """
        append_line(self.directory.diagnostics, {"step": step, **found})

    def epoch(self, step: int, epoch: int, means: RunningMean, rate: float, metrics: CocoMetrics | None) -> None:
        """Write the line of an epoch, and the row of its evaluation if there was one.

        Raises:
            OutputError: one of them cannot be written.
        """
        average = means.means()
        values = None if metrics is None else metrics.values
        record = epoch_record(epoch, step, average, self.last_layer, self.weights, rate, self.parameters, values)
        append_line(self.directory.log, record)
        loss = average.get("loss", math.nan)
        text = f"epoch {epoch + 1}/{self.epochs}  step {step}  loss {loss:.3f}"
        if values is not None:
            row = {"epoch": epoch + 1, "step": step, "time": int(time.time()), "loss": round(loss, 5), "lr": rate}
            append_row(self.directory.results, {**row, **values})
            self.display.evaluated(values["AP"])
            if self._tensorboard is not None:
                self._tensorboard.epoch(step, values)
            text += f"  AP {figure(values['AP'])}  AP50 {figure(values['AP50'])}"
        padding = padded_share(average)
        self.display.line(text if math.isnan(padding) else f"{text}  padding {padding:.2f}")

    def picture(self, last: bool) -> None:
        """Draw ``results.png``, not more than once in a while; a picture that cannot be written ends no run."""
        due = self._drawn is None or time.monotonic() - self._drawn >= SECONDS_BETWEEN_PICTURES
        if not (last or due):
            return
        self._drawn = time.monotonic()
        try:
            from lora_detr.records.plots import write_results_picture  # matplotlib is slow to import

            write_results_picture(self.directory)
        except Exception as error:  # the drawing library has faults and settings of its own
            self.display.line(f"warning: results.png was not drawn: {error}")

    def close(self) -> None:
        """Write what is held back for TensorBoard; must not hide why the run ended, so it raises nothing."""
        if self._tensorboard is not None:
            with contextlib.suppress(OutputError):
                self._tensorboard.close()
