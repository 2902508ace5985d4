"""Evaluate a run and write the page about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lora_detr.atomic_files import prepare_directory, write_file
from lora_detr.checkpoints.opened import OpenedRun, kind_of, open_run
from lora_detr.config.installed import installed_version
from lora_detr.data.images import MAX_PIXELS
from lora_detr.errors import ConfigError, counted, printable
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator, CocoMetrics
from lora_detr.evaluation.confusion import Confusion, confusion_of
from lora_detr.evaluation.detect import left_out_lines, plain_predictor
from lora_detr.evaluation.error_kinds import ERRORS, NEAR_IOU
from lora_detr.evaluation.matching import MATCH_IOU
from lora_detr.evaluation.operating_point import measure
from lora_detr.evaluation.precision_recall import precision_table
from lora_detr.recipe.preparation import describe_suppression
from lora_detr.records.diversity import read_diversity
from lora_detr.records.plots import footnote, read_curves
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs.evaluate import NoValidationError, prepare
from lora_detr.runs.report import charts, pictures, results
from lora_detr.runs.report.history import History, read_history
from lora_detr.runs.validation import check_place

SUFFIXES = (".html", ".htm")
NAME = "report.html"

KINDS_OF_MODEL = {"official": "a .pth file", "stripped": "a stripped file", "transformers": "a folder of transformers"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the detector of a run does on a split.

    Attributes:
        metrics: COCO's numbers and the operating point.
        evaluator: holds the detections without suppression.
        confusion: errors at the operating point.
        described: a line about what was evaluated on what.
        left_out: lines about images that cannot be read.
        max_pixels: larger images are refused.
    """

    metrics: CocoMetrics
    evaluator: CocoEvaluator
    confusion: Confusion
    described: str
    left_out: list[str]
    max_pixels: int = MAX_PIXELS


def write_report(
    model: Path,
    *,
    say: Callable[[str], None],
    output: Path | None = None,
    data: Path | None = None,
    which: Literal["best", "last"] = "best",
    ema: bool = True,
    device: str = "auto",
) -> Path:
    """Evaluate the detector of a run and write a page about both.

    Args:
        model: run directory or checkpoint.
        say: told a line about what is evaluated.
        output: file to write, replaced when it exists; None for ``report.html`` in the folder of the run.
        data: COCO folder or YAML; None for the run's own.
        which: checkpoint of a run directory.
        ema: take the averaged weights where the checkpoint has them.
        device: where to compute.

    Returns:
        The file. Where the run's own data has no validation split, it is about the training alone.

    Raises:
        LoraDetrError: whatever the user can cause.
    """
    if (kind := kind_of(model)) in KINDS_OF_MODEL:
        message = f"{model}: expected a run directory or a checkpoint, found {KINDS_OF_MODEL[kind]}"
        raise ConfigError(message, "give the run that it comes from; `loradetr eval` evaluates any model")
    if output is not None:
        check_place("--output", output)
        if output.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--output {output}: expected a file that ends in .html", "the report is one HTML page")
    try:
        prepared = prepare(model, say=say, data=data, which=which, ema=ema, device=device)
        run = prepared.run
        assert run is not None
    except NoValidationError as error:
        prepared, run = None, open_run(model, which, ema=ema)
        say(f"{error.message}: the report is about the training alone")
    target = output or run.run / NAME
    prepare_directory(target.parent)  # before the evaluation, not after it
    if prepared is None:
        _write(target, page(run, None))
        return target
    say(prepared.describe())
    evaluators = prepared.detect(plain_predictor(run.detector))
    if prepared.world.is_main:
        config, plain = prepared.config, evaluators[None]
        metrics = measure(evaluators, config)
        assert metrics.usage is not None
        confusion = confusion_of(plain, metrics.usage.point, config.categories, config.suppression)
        described, left_out = prepared.describe(), left_out_lines(plain)
        _write(target, page(run, Evaluation(metrics, plain, confusion, described, left_out, config.max_pixels)))
    prepared.world.gather(None)  # all wait for the first one: processes that end well end together
    prepared.world.close()
    return target


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode("utf-8", "backslashreplace"))


def page(run: OpenedRun, evaluation: Evaluation | None) -> str:
    """Return the page as HTML.

    Args:
        run: whose folder is read.
        evaluation: of its detector; None where nothing could be evaluated.
    """
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    history = read_history(run.run)
    directory = RunDirectory(run.run)
    curves, diversity = read_curves(directory), read_diversity(run.run, run.run.name)
    return template.render(
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        version=installed_version("lora-detr"),
        name=printable(run.run.resolve().name),
        checkpoint=printable(run.path.name),
        averaged=run.averaged,
        history=history,
        trained=f"{sum(parameter.numel() for parameter in run.model.parameters()):,}",
        training=[] if curves is None else list(charts.training_charts(curves)),
        training_note="" if curves is None else footnote(curves),
        branches=[] if diversity is None else list(charts.diversity_charts(diversity)),
        found=None if evaluation is None else _found(evaluation),
        kinds=ERRORS,
        match_iou=MATCH_IOU,
        near_iou=NEAR_IOU,
        suppression_iou=SUPPRESSION_IOU,
        headline=list(_headline(history, evaluation)),
    )


def _found(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows of an evaluation."""
    metrics, confusion, split = evaluation.metrics, evaluation.confusion, evaluation.evaluator.split
    table = precision_table(evaluation.evaluator)
    best, worst = pictures.extremes(confusion.images)

    def drawn(places: list[int]) -> list[pictures.Example]:
        chosen = ((split.records[place], confusion.images[place]) for place in places)
        return [pictures.example(record, judged, split, evaluation.max_pixels) for record, judged in chosen]

    rows = results.class_rows(table, confusion)
    return {
        "described": evaluation.described,
        "left_out": evaluation.left_out,
        "sizes": results.size_rows(metrics, table),
        "classes": rows,
        "all_classes": len(confusion.labels),
        "weakest_first": len(confusion.labels) > results.IN_ORDER,
        "curves": list(charts.precision_charts(table)),
        "errors": results.error_rows(confusion),
        "ignored": confusion.errors.ignored(),
        "right": confusion.errors.right(),
        "objects": int(confusion.errors.objects.sum()),
        "missed_share": results.missed_share(confusion),
        "precision": results.percent(confusion.errors.precision()),
        "recall": results.percent(confusion.errors.recall()),
        "matrix": results.shown_matrix(confusion),
        "mistaken": results.most_mistaken(confusion),
        "few": results.few_objects(metrics),
        "point": confusion.point,
        "suppression": describe_suppression(confusion.point.nms_iou),
        "duplicate_rate": results.percent(metrics.usage.duplicate_rate if metrics.usage else None),
        "examples": [("Best images", drawn(best)), ("Worst images", drawn(worst))],
        "unmeasured": any(value < 0 for value in metrics.values.values()),
    }


def _headline(history: History, evaluation: Evaluation | None) -> Iterator[tuple[str, str, str]]:
    """Yield what a page begins with: name, figure and remark."""
    if evaluation is not None:
        metrics, usage = evaluation.metrics, evaluation.metrics.usage
        assert usage is not None
        yield "AP", results.number(metrics.values["AP"]), "mean over IoU 0.5 to 0.95"
        yield "AP50", results.number(metrics.values["AP50"]), "at IoU 0.5"
        suppressed = results.number(usage.suppressed_precision)
        yield "AP with suppression", suppressed, f"duplicates above IoU {SUPPRESSION_IOU:g} dropped"
        yield "Duplicate rate", results.percent(usage.duplicate_rate), "of detections at the operating point"
        remark = f"score {usage.point.score:.2f}, {describe_suppression(usage.point.nms_iou)}"
        yield "F1 at the operating point", f"{usage.point.f1:.3f}", remark
    if history.parameters is not None:
        before, after = history.parameters
        yield "Parameters", f"{after / 1e6:.2f} M", f"deployed; {before / 1e6:.2f} M before strip of {history.stripped}"


def size_of(path: Path) -> str:
    """Return the size of a written page in words."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else counted(size, "byte")
