"""Whether diversity of branches pays: the overlap of their positives beside the gain of every row, and kinds of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lora_detr.errors import counted
from lora_detr.evaluation.coco_eval import METRICS, USAGE
from lora_detr.experiments.markdown import markdown_table
from lora_detr.experiments.tables.results import Difference, RowResult, difference, reference_of, spread
from lora_detr.experiments.tables.study import Study
from lora_detr.records.diversity import TWO_BRANCHES, condensed, late_mean, read_diversity

FIGURES = (METRICS[0], USAGE[0])
"""Without and with suppression."""

FEWEST_ROWS = 4
"""The interval of a correlation divides by the root of the number of rows minus 3."""

Diversity = Literal["none", "settings", "rules"]
WORDS: dict[Diversity, str] = {
    "none": "identical branches",
    "settings": "one rule, different settings",
    "rules": "different rules",
}


@dataclass(frozen=True)
class RowOverlap:
    """A row with at least two branches of which a run is done.

    Attributes:
        result: its runs.
        diversity: what its branches differ in.
        overlap: Jaccard of the positives of two branches: the mean over pairs, layers and the last half of each run,
            then over the runs with diagnostics; NaN without any.
        gains: figure -> by how much the row is ahead of the reference.
        mixing: figure -> by how much it is ahead of the mean of its parts: for each of its branches, the row of as many
            branches that are all like that one, otherwise with the same settings. Empty if the study lacks one of
            these, or the row is one itself.
    """

    result: RowResult
    diversity: Diversity
    overlap: float
    gains: dict[str, Difference]
    mixing: dict[str, Difference]


def read_overlaps(study: Study, results: Sequence[RowResult]) -> list[RowOverlap]:
    """Return the rows of a study that have at least two branches and a finished run, in order.

    Raises:
        ConfigError: a row's options are no longer valid.
        OutputError: a file cannot be read.
    """
    reference = reference_of(study, results)
    configs = [study.config(result.row) for result in results]
    found = []
    for result, config in zip(results, configs, strict=True):
        count, kinds = len(config.branches), {branch.matcher.kind for branch in config.branches}
        if count < 2 or not result.runs:
            continue
        mixed = len(set(config.branches)) > 1
        wanted = [config.model_copy(update={"branches": (branch,) * count}) for branch in config.branches]
        parts = [results[configs.index(one)] for one in wanted if one in configs]
        mean = _mean_row(parts) if mixed and len(parts) == count else None
        found.append(
            RowOverlap(
                result,
                "rules" if len(kinds) > 1 else "settings" if mixed else "none",
                _overlap(study, result),
                {} if reference is None else {figure: difference(result, reference, figure) for figure in FIGURES},
                {} if mean is None else {figure: difference(result, mean, figure) for figure in FIGURES},
            )
        )
    return found


def _overlap(study: Study, result: RowResult) -> float:
    folders = [run.folder for run in study.runs if run.row.name == result.row.name and run.seed not in result.missing]
    logs = [log for folder in folders if (log := read_diversity(folder, result.row.name)) is not None]
    values = [late_mean(condensed(log), "jaccard", TWO_BRANCHES) for log in logs]
    return spread([value for value in values if math.isfinite(value)])[0]


def _mean_row(rows: Sequence[RowResult]) -> RowResult:
    """Return the mean of rows, seed by seed, over the seeds and figures that all have."""
    by_seed = [{run.seed: run for run in row.runs} for row in rows]
    runs = []
    for seed in sorted(set.intersection(*(set(own) for own in by_seed))):
        members = [own[seed] for own in by_seed]
        figures = [figure for figure in members[0].values if all(figure in run.values for run in members)]
        means = {figure: spread([run.values[figure] for run in members])[0] for figure in figures}
        runs.append(replace(members[0], values=means))
    return replace(rows[0], runs=tuple(runs))


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation.

    Attributes:
        value: in [-1, 1].
        low: lower end of the 95 % interval by Fisher's z, which takes points as independent and normally distributed.
        high: upper end.
    """

    value: float
    low: float
    high: float


def correlate(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Return the correlation of paired values; None for fewer than four pairs, or where one side is constant."""
    if len(first) < FEWEST_ROWS or np.allclose(first, first[0]) or np.allclose(second, second[0]):
        return None
    from scipy.stats import pearsonr  # takes a while to import

    found = pearsonr(first, second)
    low, high = found.confidence_interval()
    return Correlation(float(found.statistic), float(low), float(high))


def points(overlaps: Sequence[RowOverlap], figure: str) -> list[RowOverlap]:
    """Return the rows of which both the overlap and the gain are known."""
    finite = (row for row in overlaps if math.isfinite(row.overlap) and figure in row.gains)
    return [row for row in finite if row.gains[figure].each]


def correlation_in_words(overlaps: Sequence[RowOverlap], figure: str) -> str:
    """Return the correlation of overlap with gain and its interval, or why there is none."""
    known = points(overlaps, figure)
    first, second = [row.overlap for row in known], [row.gains[figure].mean for row in known]
    rows = counted(len(known), "row")
    if len(known) < FEWEST_ROWS:
        return f"no correlation: {rows} with both figures, at least {FEWEST_ROWS} are needed"
    found = correlate(first, second)
    if found is None:
        return f"no correlation: the {'overlap' if np.allclose(first, first[0]) else 'gain'} is the same in all {rows}"
    verdict = "significant" if found.low > 0 or found.high < 0 else "not significant"
    return f"r = {found.value:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}, {rows}, {verdict}"


def overlap_section(study: Study, overlaps: Sequence[RowOverlap], picture: str | None = None) -> list[str]:
    """Return the part of the report about diversity as Markdown; nothing for a study without two branches in a row.

    Args:
        study: what was run.
        overlaps: of its rows.
        picture: file beside the report that is shown.
    """
    if not overlaps:
        return []
    reference = study.info.table.reference or study.info.table.rows[0].name
    head = ["row", "branches", "overlap", *(f"{figure} against {reference}" for figure in FIGURES)]
    head += [f"{figure} against parts" for figure in FIGURES]
    cells = [
        [
            row.result.row.label,
            WORDS[row.diversity],
            f"{row.overlap:.3f}" if math.isfinite(row.overlap) else "-",
            *(in_points(row.gains.get(figure)) for figure in FIGURES),
            *(in_points(row.mixing.get(figure)) for figure in FIGURES),
        ]
        for row in overlaps
    ]
    lines = ["## Diversity of branches", ""]
    lines += [
        "Overlap: Jaccard of the positives of two branches, the mean over pairs, decoder layers, seeds and the last "
        "half of each run. Parts of a row are the rows whose branches are all like one of its own: the difference is "
        "what mixing adds. Correlation is Pearson's, over rows, with its 95 % interval by Fisher's z, which takes rows "
        "as independent; below 0, rows gain more whose branches overlap less.",
        "",
        *markdown_table(head, cells, words=2),
        "",
    ]
    if all(math.isnan(row.overlap) for row in overlaps):
        lines += ["- Overlap is not known: no run has diagnostics (`--set train.diagnostics=50` records them)."]
    else:
        lines += [f"- Overlap and gain in {figure}: {correlation_in_words(overlaps, figure)}." for figure in FIGURES]
    lines += [f"- {line}." for line in _kinds_compared(overlaps)]
    shown = [] if picture is None else [f"![Overlap of branches against gain]({picture})", ""]
    return [*lines, "", *shown]


def _kinds_compared(overlaps: Sequence[RowOverlap]) -> list[str]:
    """Return by how much rows of different rules, on average, are ahead of others, seed by seed."""
    groups = {kind: [row.result for row in overlaps if row.diversity == kind] for kind in WORDS}
    lines = []
    for other in ("settings", "none"):
        if groups["rules"] and groups[other]:
            first, second = _mean_row(groups["rules"]), _mean_row(groups[other])
            found = {figure: difference(first, second, figure) for figure in FIGURES}
            figures = ", ".join(f"{figure} {in_points(one)}" for figure, one in found.items() if one.each)
            sizes = [counted(len(groups[kind]), "row") for kind in ("rules", other)]
            seeds = counted(len(first.runs), "seed")
            lines += [f"Different rules ({sizes[0]}) against {WORDS[other]} ({sizes[1]}): {figures} ({seeds})"]
    return lines


def in_points(found: Difference | None) -> str:
    """Return a difference with half its 95 % interval, as the report has it."""
    if found is None or not found.each:
        return "-"
    return f"{found.mean:+.1f}" + ("" if math.isnan(found.margin) else f" ± {found.margin:.1f}")
