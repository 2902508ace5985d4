"""The report of a study: Markdown, CSV and a picture, published and measured side by side."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from lora_detr.atomic_files import write_file
from lora_detr.evaluation.coco_eval import METRICS, USAGE
from lora_detr.experiments.markdown import markdown_table
from lora_detr.experiments.tables.overlap import FIGURES, in_points, overlap_section, points, read_overlaps
from lora_detr.experiments.tables.results import RowResult, difference, not_comparable, reference_of, spread
from lora_detr.experiments.tables.study import Study

PRECISIONS = METRICS[:6]
UNKNOWN = "-"


def write_report(study: Study, results: Sequence[RowResult]) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and, if a run is done, ``report.png`` into the folder of a study.

    With diagnostics of rows that have at least two branches also ``overlap.png``.

    Returns:
        What was written.

    Raises:
        OutputError: a file cannot be written.
    """
    written = [study.folder / "report.md", study.folder / "report.csv"]
    pictured = any(result.runs for result in results)
    overlaps = read_overlaps(study, results)
    overlapping = any(points(overlaps, figure) for figure in FIGURES)
    diversity = overlap_section(study, overlaps, "overlap.png" if overlapping else None)
    write_file(written[0], markdown(study, results, "report.png" if pictured else None, diversity).encode())
    write_file(written[1], table_of_runs(study, results).encode())
    if pictured:
        from lora_detr.experiments.tables.picture import draw_overlaps, draw_study  # matplotlib takes a while to import

        written.append(study.folder / "report.png")
        write_file(written[2], draw_study(study, results))
        if overlapping:
            written.append(study.folder / "overlap.png")
            write_file(written[3], draw_overlaps(study, overlaps))
    return written


def markdown(
    study: Study, results: Sequence[RowResult], picture: str | None = None, diversity: Sequence[str] = ()
) -> str:
    """Return the report as Markdown.

    Args:
        study: what was run.
        results: of its rows, in order.
        picture: file beside it that is shown.
        diversity: lines about the diversity of branches.
    """
    lines = [f"# {study.info.table.title}", "", *_preface(study), ""]
    lines += markdown_table(*accuracy_table(study, results))
    lines += ["", *_missing(results)]
    lines += [] if picture is None else [f"![{study.info.table.title}]({picture})", ""]
    return "\n".join([*lines, *_runs(study, results), *diversity, *_commands(study)]) + "\n"


def accuracy_table(
    study: Study, results: Sequence[RowResult], brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return header and cells: what each row published and measured, and what it costs.

    Args:
        study: what was run.
        results: of its rows, in order.
        brief: as fits a terminal: rows by their short names, AP and AP50 alone of COCO's numbers, only AP compared.
    """
    table = study.info.table
    answers = [answer.figure for answer in table.answers[1:]]
    figures = [*(METRICS[:2] if brief else PRECISIONS), *USAGE, *answers]
    published = [figure for figure in figures if any(figure in row.published for row in table.rows)]
    measured = [figure for figure in figures if any(result.values(figure) for result in results)]
    counted = any("parameters" in row.published for row in table.rows)
    reference = reference_of(study, results)
    compared = [
        (figure, reference)
        for figure in (METRICS[0], *([] if brief else (USAGE[0], *answers)))
        if reference is not None and len(results) > 1 and reference.values(figure)
    ]
    head = ["row", *(f"*published* {figure}" for figure in published), *(f"{figure} measured" for figure in measured)]
    head += [f"{figure} against {other.row.name}" for figure, other in compared]
    head += ["seeds", *(["*published* parameters"] if counted else []), "parameters", "step time"]
    base = results[0].seconds if results else math.nan
    cells = []
    for result in results:
        said = result.row.published
        cells.append(
            [
                result.row.name if brief else result.row.label,
                *(_number(said.get(figure), 1) for figure in published),
                *(mean_and_spread(result.values(figure)) for figure in measured),
                *(_against(result, other, figure) for figure, other in compared),
                str(len(result.runs)),
                *([_number(said.get("parameters"), 1, " M")] if counted else []),
                _number(result.parameters, 2, " M"),
                _number(result.seconds / base, 2),
            ]
        )
    return head, cells


def _against(result: RowResult, reference: RowResult, figure: str) -> str:
    """Return by how much a row is ahead, with the 95 % interval of it."""
    if result.row.name == reference.row.name:
        return UNKNOWN
    return in_points(difference(result, reference, figure))


def mean_and_spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation of figures, as the report has them."""
    mean, deviation = spread(values)
    return _number(mean, 1) + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def table_of_runs(study: Study, results: Sequence[RowResult]) -> str:
    """Return the report as CSV: a line for each run, done or not."""
    answers = [answer.figure for answer in study.info.table.answers[1:]]
    figures = [*METRICS, *USAGE, *answers]
    head = ["row", "label", "seed", "done", "parameters_millions", "seconds_a_step", *figures]
    head += [f"published {figure}" for figure in (*figures, "parameters", "minutes")]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    for result in results:
        common: dict[str, object] = {"row": result.row.name, "label": result.row.label}
        common |= {"parameters_millions": f"{result.parameters:.6f}"}
        common |= {f"published {figure}": value for figure, value in result.row.published.items()}
        for run in result.runs:
            measured = {figure: f"{value:.4f}" for figure, value in run.values.items()}
            writer.writerow({**common, "seed": run.seed, "done": 1, "seconds_a_step": f"{run.seconds:.4f}", **measured})
        for seed in result.missing:
            writer.writerow({**common, "seed": seed, "done": 0})
    return text.getvalue()


def _preface(study: Study) -> list[str]:
    table = study.info.table
    reasons = not_comparable(study)
    published = any(row.published for row in table.rows)
    lines = (
        [f"Published figures: LoRA-DETR (AAAI 2026), COCO val2017; {table.source}."] if published else [table.source]
    )
    if reasons and published:
        lines += ["", f"**Not comparable with the published figures:** {'; '.join(reasons)}."]
    elif reasons:
        lines += ["", f"**Scaled down:** {'; '.join(reasons)}."]
    seeds = ", ".join(map(str, study.seeds))
    measured = (
        f"Measured by `{study.command()}`; AP in percent after the last step, mean ± standard deviation over seeds"
    )
    time = "Step time is relative to the first row; runs beside each other disturb it."
    against = (
        '"AP against" is the mean of the differences between runs of the same seed, with half its 95 % interval; '
        "where the interval contains 0, there is no significant difference."
    )
    return [*lines, "", f"{measured} {seeds}. {against} {time}"]


def _missing(results: Sequence[RowResult]) -> list[str]:
    missing = [
        f"{result.row.label} (seed{'s' * (len(result.missing) > 1)} {', '.join(map(str, result.missing))})"
        for result in results
        if result.missing
    ]
    return [f"**Not done:** {'; '.join(missing)}.", ""] if missing else []


def _runs(study: Study, results: Sequence[RowResult]) -> list[str]:
    """Return AP of every run, so that no run is hidden in a mean."""
    head = ["AP of every run", *(f"seed {seed}" for seed in study.seeds)]
    cells = []
    for result in results:
        by_seed = {run.seed: run.values.get(METRICS[0]) for run in result.runs}
        cells.append([result.row.label, *(_number(by_seed.get(seed), 2) for seed in study.seeds)])
    return [*markdown_table(head, cells), ""]


def _commands(study: Study) -> list[str]:
    settings = shlex.join(study.settings.arguments(shown=True))
    lines = ["Each run alone:", "", "```"]
    lines += [
        f"loradetr train {shlex.join(row.at(study.settings.scale).arguments())} {settings} --seed SEED"
        for row in study.rows
    ]
    return [*lines, "```"]


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"
