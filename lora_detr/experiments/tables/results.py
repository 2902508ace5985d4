"""What the runs of a study gave, read off their folders."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_detr.evaluation.coco_eval import METRICS, USAGE
from lora_detr.experiments.tables.runner import is_done
from lora_detr.experiments.tables.study import Run, Study
from lora_detr.experiments.tables.table import Scale, TableRow
from lora_detr.json_value import JSON
from lora_detr.records.log_reading import read_evaluations, read_object, read_steps
from lora_detr.records.run_directory import DATA_REPORT, RunDirectory
from lora_detr.runs.request import resolve

COCO_CLASSES = 91  # as official models have it: the ids of COCO's categories reach 90, and 0 is none of them


@dataclass(frozen=True)
class Curve:
    """AP of the primary path over a run.

    Attributes:
        steps: of the evaluations, rising.
        precision: AP in percent at each.
    """

    steps: tuple[int, ...]
    precision: tuple[float, ...]


@dataclass(frozen=True)
class RunResult:
    """What one run gave.

    Attributes:
        seed: of the run.
        values: figure -> value of the last evaluation: COCO's numbers and those of ``USAGE`` in percent; ``AP, ANSWER``
            of other answers.
        curve: over the run.
        seconds: median of a step, NaN where none is known.
    """

    seed: int
    values: dict[str, float]
    curve: Curve
    seconds: float


@dataclass(frozen=True)
class RowResult:
    """What the runs of a row gave.

    Attributes:
        row: of the table.
        parameters: that are trained, in millions, with as many classes as the data has.
        runs: those that are done, by seed.
        missing: seeds that are not done.
    """

    row: TableRow
    parameters: float
    runs: tuple[RunResult, ...]
    missing: tuple[int, ...]

    def values(self, figure: str) -> list[float]:
        """Return a figure of every run that has it."""
        return [run.values[figure] for run in self.runs if figure in run.values]

    @property
    def seconds(self) -> float:
        """Median seconds of a step over the runs; NaN where none is known."""
        known = [run.seconds for run in self.runs if math.isfinite(run.seconds)]
        return statistics.median(known) if known else math.nan


def read_results(study: Study) -> list[RowResult]:
    """Return what every row gave, those without a finished run included.

    Raises:
        ConfigError: a row's options are no longer valid.
        OutputError: a file cannot be read.
    """
    classes = _classes(study)
    found: dict[str, list[Run]] = {}
    for run in study.runs:
        found.setdefault(run.row.name, []).append(run)
    results = []
    for row in study.rows:
        runs = found[row.name]
        done = [run for run in runs if is_done(run)]
        results.append(
            RowResult(
                row,
                parameters(row, study.settings.scale, classes),
                tuple(_result(run, study) for run in done),
                tuple(run.seed for run in runs if run not in done),
            )
        )
    return results


def parameters(row: TableRow, scale: Scale, classes: int = COCO_CLASSES) -> float:
    """Return how many parameters a row trains, branches and query groups included, in millions; no data is read.

    Args:
        row: of a table.
        scale: whether its preset is the paper's or the small one.
        classes: K.

    Raises:
        ConfigError: its options are wrong.
    """
    config = resolve(row.at(scale).request(Path("no-data"))).loaded.config
    with torch.device("meta"):
        model = config.build_model(classes, load_weights=False)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6


def not_comparable(study: Study) -> list[str]:
    """Return why measured figures must not be compared with published ones; empty where nothing says so."""
    reasons = study.settings.scaled_down()
    needed = study.info.table.comparable
    for run in study.runs:
        report = read_object(run.folder / DATA_REPORT)
        for split, expected in (("train", needed.train_images), ("val", needed.val_images)):
            part = report.get(split)
            count = part.get("images") if isinstance(part, dict) else None
            if count is not None and count != expected:
                reasons.append(f"{count} images for {split} where COCO 2017 has {expected:,}")
        batch = _images_a_step(run, report)
        if study.settings.steps is None and batch not in (None, needed.images_a_step):
            reasons.append(f"{batch} images per step where the paper has {needed.images_a_step}")
        if report:
            break
    return reasons


def _images_a_step(run: Run, report: Mapping[str, JSON]) -> int | None:
    """Return the global batch, of a run that has ended an epoch: an epoch goes once through all images."""
    train = report.get("train")
    images = train.get("images") if isinstance(train, dict) else None
    rows = list(read_evaluations(RunDirectory(run.folder).results))
    if not isinstance(images, int) or not rows:
        return None
    steps = rows[-1]["step"] / (rows[-1].get("epoch") or math.nan)
    return round(images / steps) if math.isfinite(steps) else None


def _result(run: Run, study: Study) -> RunResult:
    directory = RunDirectory(run.folder)
    rows = list(read_evaluations(directory.results))
    last = _last_evaluation(directory, rows[-1] if rows else {})
    values = {name: 100 * last[name] for name in (*METRICS, *USAGE) if math.isfinite(last.get(name, math.nan))}
    for question in study.questions(run):
        said = read_object(question.file).get(METRICS[0])
        if isinstance(said, int | float) and said >= 0:
            values[question.answer.figure] = 100 * float(said)
    precision = tuple(100 * row.get(METRICS[0], math.nan) for row in rows)
    curve = Curve(tuple(int(row["step"]) for row in rows), precision)
    return RunResult(run.seed, values, curve, _seconds(directory.metrics))


def _last_evaluation(directory: RunDirectory, row: Mapping[str, float]) -> Mapping[str, float]:
    """Return the numbers of the last evaluation: its row, or what ``eval`` holds of it where the row was damaged."""
    kept = read_object(directory.evaluation / "metrics.json")
    step = str(kept.get("checkpoint", "")).removeprefix("step-")
    if not step.isdecimal() or int(step) <= row.get("step", 0):
        return row
    numbers = {name: kept.get(name) for name in (*METRICS, *USAGE)}
    return {name: float(one) for name, one in numbers.items() if isinstance(one, int | float) and one >= 0}


def _seconds(metrics: Path) -> float:
    times = [one.seconds for one in read_steps(metrics) if math.isfinite(one.seconds)]
    return statistics.median(times) if times else math.nan


def _classes(study: Study) -> int:
    """Return K of the data that the runs were trained on; that of COCO while there is none."""
    for run in study.runs:
        train = read_object(run.folder / DATA_REPORT).get("train")
        if isinstance(train, dict) and isinstance(train.get("categories"), int):
            count = train["categories"]
            assert isinstance(count, int)
            return count
    return COCO_CLASSES


@dataclass(frozen=True)
class Difference:
    """By how much a row is ahead of another, over the seeds that both have.

    Attributes:
        each: by seed, rising; the same seed means the same images in the same order and the same initial detector.
        mean: of them; NaN where there are none.
        margin: half the width of the 95 % interval of the mean (Student's t, so it assumes that differences spread
            normally); NaN with fewer than two seeds.
    """

    each: tuple[float, ...]
    mean: float
    margin: float


def difference(row: RowResult, reference: RowResult, figure: str) -> Difference:
    """Compare two rows seed by seed."""
    from scipy.stats import t  # takes a while to import

    base = {run.seed: run.values[figure] for run in reference.runs if figure in run.values}
    pairs = ((run.values[figure], base[run.seed]) for run in row.runs if figure in run.values and run.seed in base)
    each = tuple(own - other for own, other in pairs)
    mean, deviation = spread(each)
    count = len(each)
    return Difference(each, mean, float(t.ppf(0.975, count - 1)) * deviation / count**0.5 if count > 1 else math.nan)


def reference_of(study: Study, results: Sequence[RowResult]) -> RowResult | None:
    """Return the row that the others are compared with, if it is in the study."""
    name = study.info.table.reference or study.info.table.rows[0].name
    return next((result for result in results if result.row.name == name), None)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan
