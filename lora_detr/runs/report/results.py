"""What a page shows of an evaluation, ready to be written: numbers as text, shares for bars and shades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_detr.errors import listed, printable
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.evaluation.confusion import BACKGROUND, Confusion
from lora_detr.evaluation.error_kinds import ERRORS, MISSED
from lora_detr.evaluation.matching import Integers
from lora_detr.evaluation.operating_point import MIN_OBJECTS
from lora_detr.evaluation.precision_recall import AREAS, PrecisionTable

MAX_ROWS = 200
"""Classes of a table; a data set with more has its weakest ones there."""

IN_ORDER = 20
"""Up to so many classes are in the order of their ids; more begin with the weakest."""

MAX_CONFUSED = 12
"""Classes of the confusion matrix; of more, the most confused ones have a row."""

NOTHING = "-"


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure, or a dash where there was nothing to measure."""
    return NOTHING if value is None or value < 0 else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


@dataclass(frozen=True)
class SizeRow:
    """Accuracy on objects of one size."""

    size: str
    objects: int
    precision: str
    recall: str


def size_rows(metrics: CocoMetrics, table: PrecisionTable) -> list[SizeRow]:
    """Return AP and AR of all, small, medium and large objects."""
    names = (("AP", "AR100"), ("APs", "ARs"), ("APm", "ARm"), ("APl", "ARl"))
    counts = table.objects.sum(axis=0).tolist()
    return [
        SizeRow(area, count, number(metrics.values[ap]), number(metrics.values[ar]))
        for area, count, (ap, ar) in zip(AREAS, counts, names, strict=True)
    ]


@dataclass(frozen=True)
class ClassRow:
    """A class: AP, and errors at the operating point.

    Attributes:
        name: of the class.
        objects: in the ground truth.
        averages: AP, AP50, and AP of small, medium and large objects.
        share: AP in percent of 1, for a bar.
        score: that a detection must reach.
        own: whether that score is the class's own.
        right: detections.
        errors: counts in the order of ``ERRORS``.
        precision: at the operating point.
        recall: at the operating point.
    """

    name: str
    objects: int
    averages: Sequence[str]
    share: str
    score: str
    own: bool
    right: int
    errors: Sequence[int]
    precision: str
    recall: str


def class_rows(table: PrecisionTable, confusion: Confusion) -> list[ClassRow]:
    """Return a row for each class, in the order of ids; of many classes the weakest first."""
    places = {category_id: place for place, category_id in enumerate(table.category_ids)}
    labels = sorted(confusion.labels, key=lambda label: confusion.categories.ids[label])
    average = {label: table.average(places[confusion.categories.ids[label]]) for label in labels}
    if len(labels) > IN_ORDER:
        labels.sort(key=lambda label: 2.0 if (own := average[label]) is None else own)
    errors, scores = confusion.errors, confusion.point.scores
    rows = []
    for label in labels[:MAX_ROWS]:
        place = places[confusion.categories.ids[label]]
        sizes = [table.average(place, iou=0), *(table.average(place, area) for area in range(1, len(AREAS)))]
        rows.append(
            ClassRow(
                printable(confusion.categories.names[label]),
                int(errors.objects[label]),
                [number(average[label]), *map(number, sizes)],
                f"{100 * (average[label] or 0.0):.1f}",
                f"{scores[label]:.2f}",
                confusion.point.class_scores[label] is not None,
                errors.right(label),
                list(errors.counts(label).values()),
                percent(errors.precision(label)),
                percent(errors.recall(label)),
            )
        )
    return rows


@dataclass(frozen=True)
class ErrorRow:
    """A kind of error: its count, its share of all errors, and that as a number for a bar."""

    kind: str
    count: int
    share: str
    width: str


def error_rows(confusion: Confusion) -> list[ErrorRow]:
    """Return the kinds of errors."""
    counts = confusion.errors.counts()
    total = sum(counts.values())
    return [
        ErrorRow(
            kind,
            counts[kind],
            percent(counts[kind] / total if total else None),
            f"{100 * counts[kind] / max(total, 1):.1f}",
        )
        for kind in ERRORS
    ]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: count, share of its row in [0, 1] for its shade, and whether it is right."""

    count: int
    shade: str
    right: bool


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix as it is shown.

    Attributes:
        names: of rows and columns; the last one is the background.
        rows: of cells; that of background with background is None.
        left_out: classes that are together in the row and column before the last, 0 for none.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[Cell | None]]
    left_out: int


def shown_matrix(confusion: Confusion) -> Matrix:
    """Return the matrix over classes with objects or detections; of many, the most confused with each other."""
    full = confusion.matrix
    used = [label for label in confusion.labels if full[label].sum() + full[:, label].sum()]
    chosen, others = used, []
    if len(used) > MAX_CONFUSED:
        wrong = full.copy()
        np.fill_diagonal(wrong, 0)
        mutual = wrong[:-1, :-1].sum(axis=0) + wrong[:-1, :-1].sum(axis=1)
        background = wrong[-1, :-1] + wrong[:-1, -1]
        ranked = sorted(used, key=lambda label: (-int(mutual[label]), -int(background[label])))
        chosen = sorted(ranked[:MAX_CONFUSED])
        others = [label for label in used if label not in chosen]
    groups = [[label] for label in chosen] + ([others] if others else []) + [[len(full) - 1]]
    counts: Integers = np.array([[full[np.ix_(row, column)].sum() for column in groups] for row in groups])
    names = [printable(confusion.categories.names[label]) for label in chosen]
    rows = [
        [_cell(counts, row, column, is_group=bool(others) and row == len(chosen)) for column in range(len(groups))]
        for row in range(len(groups))
    ]
    return Matrix([*names, *(["other classes"] if others else []), BACKGROUND], rows, len(others))


def _cell(counts: Integers, row: int, column: int, *, is_group: bool) -> Cell | None:
    last = len(counts) - 1
    if row == column == last:
        return None
    share = float(counts[row, column] / max(int(counts[row].sum()), 1))
    return Cell(int(counts[row, column]), f"{share:.2f}", row == column and not is_group)


@dataclass(frozen=True)
class Mistaken:
    """Objects of one class that were found as another."""

    truth: str
    found: str
    count: int
    share: str


def most_mistaken(confusion: Confusion, limit: int = 10) -> list[Mistaken]:
    """Return which classes are most often taken for which other ones."""
    inner = confusion.matrix[:-1, :-1].copy()
    np.fill_diagonal(inner, 0)
    pairs = sorted(zip(*np.nonzero(inner), strict=True), key=lambda pair: -int(inner[pair]))
    names, objects = [printable(name) for name in confusion.categories.names], confusion.errors.objects
    return [
        Mistaken(names[truth], names[found], int(inner[truth, found]), percent(inner[truth, found] / objects[truth]))
        for truth, found in pairs[:limit]
    ]


def few_objects(metrics: CocoMetrics) -> str:
    """Return a sentence about classes that use the overall score; empty if there is none."""
    few = metrics.usage.few if metrics.usage is not None else ()
    return (
        f"The overall score counts for classes with fewer than {MIN_OBJECTS} objects: {listed(few, 10)}" if few else ""
    )


def missed_share(confusion: Confusion) -> str:
    """Return the share of objects that are missed."""
    objects = int(confusion.errors.objects.sum())
    return percent(confusion.errors.counts()[MISSED] / objects if objects else None)
