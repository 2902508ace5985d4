"""What was found in an annotation file: problems that stop a run, and counts of what was repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_detr.data.coco.plausibility import BOX_REMEDY
from lora_detr.data.quality.finding import Finding, Severity
from lora_detr.errors import DataError, counted, listed, printable

SHOWN_PROBLEMS = 20
"""Problems written out in the message; all of them are in ``AnnotationError.problems``."""


_UNREADABLE = "replace the images, or leave them out with --on-bad-data skip,"
_REMEDIES = {
    "D17": "put the images there, or correct the file",
    "D18": _UNREADABLE,
    "D20": "get the images again, or the list if it is the list that is wrong,",
    "D23": _UNREADABLE,
    "D25": _UNREADABLE,
    "D27": "take them out of one split, or leave --strict out,",
    "D28": f"{BOX_REMEDY}, or leave --strict out,",
}

BOX = ("box", "boxes")


def remedy_of(code: str) -> str:
    """Return what to do about problems of a kind."""
    return _REMEDIES.get(code, "correct the file")


@dataclass(frozen=True)
class Problem:
    """One fault of an annotation file.

    Attributes:
        code: kind of fault, such as ``D07``.
        text: one line that names file, index and id.
    """

    code: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))  # names in it may hold line ends


class AnnotationError(DataError):
    """Everything wrong with an annotation file and its images, or with several.

    Args:
        path: the annotation file.
        problems: at least one, in file order; the first gives the error its code.
        more: other files that have a part in it.
        report: file that lists all problems, if there is one.
    """

    on_all_ranks = True

    def __init__(
        self, path: Path, problems: Sequence[Problem], more: tuple[Path, ...] = (), report: Path | None = None
    ) -> None:
        first, *others = problems[:SHOWN_PROBLEMS]
        lines = [first.text, *(f"error[{problem.code}]: {problem.text}" for problem in others)]
        if len(problems) > SHOWN_PROBLEMS:
            rest = f"... and {len(problems) - SHOWN_PROBLEMS} more"
            lines.append(rest if report else f"{rest}; loradetr doctor --data DATA --report FILE writes all")
        number = counted(len(problems), "problem")
        remedy = remedy_of(first.code)
        places = " and ".join(map(str, (path, *more)))
        listed = f" (all: {report})" if report else ""
        super().__init__("\n".join(lines), f"{number} in {places}{listed}; {remedy} and start again", code=first.code)
        self.path = path
        self.problems = tuple(problems)
        self.more = more
        self.report = report

    def __reduce__(self) -> tuple[type[AnnotationError], tuple[object, ...]]:
        return AnnotationError, (self.path, self.problems, self.more, self.report)

    def listed_in(self, report: Path) -> AnnotationError:
        """Return the same error with the name of the file that lists all problems."""
        return AnnotationError(self.path, self.problems, self.more, report)

    def to_json(self) -> list[dict[str, str]]:
        """Return all problems, for ``data_report.json``."""
        return [asdict(problem) for problem in self.problems]


@dataclass(frozen=True)
class CategoryCount:
    """Objects of one category.

    Attributes:
        id: original id.
        name: of the category.
        objects: kept for training.
    """

    id: int
    name: str
    objects: int


@dataclass(frozen=True)
class ClassCount:
    """Objects of one class of a data set that would be trained on.

    Attributes:
        id: category id of the annotation files.
        name: as the training split has it.
        train: objects of the training split.
        val: objects of the validation split; 0 where there is none.
    """

    id: int
    name: str
    train: int
    val: int

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def count_classes(reports: Sequence[DataReport]) -> list[ClassCount]:
    """Return the objects of each class by rising id; a class that only one split has is counted too.

    Args:
        reports: of the training split, and of the validation split if there is one.
    """
    names: dict[int, str] = {}
    objects: list[dict[int, int]] = [{}, {}]
    for split, report in zip(objects, reports, strict=False):
        for count in report.per_category:
            names.setdefault(count.id, count.name)
            split[count.id] = count.objects
    train, val = objects
    return [ClassCount(i, names[i], train.get(i, 0), val.get(i, 0)) for i in sorted(names)]


@dataclass(frozen=True)
class DataReport:
    """Counts of one annotation file. Annotations are counted once: the first reason that drops one counts.

    Attributes:
        file: name of the annotation file.
        images: images.
        images_without_objects: images that train as background only.
        objects: objects kept for training.
        categories: categories in the file, with or without objects.
        crowd: crowd regions: not trained on, ignored regions in evaluation.
        zero_size: boxes without width or height, dropped.
        outside: boxes that do not touch their image, dropped.
        bad_boxes: malformed, negative or non-finite boxes, dropped on request (``on_bad_data='skip'``).
        clipped: boxes cut at the border of their image, kept.
        box_doubt: why the boxes do not look like x, y, width, height in pixels; empty if they do.
        missing_area: annotations without ``area``; width times height is used.
        missing_iscrowd: annotations without ``iscrowd``; 0 is used.
        duplicate_file_names: images whose file another image names too.
        duplicate_category_names: categories whose name another category has too.
        unreadable: images that could not be decoded when the data was verified, left out on request.
        missing_files: names of images that were left out on request, since their files are missing; in no count.
        unreadable_files: names of images that were left out on request, since their files give no size; in no count.
        other_separators: file names that were read with ``/`` in place of another separator.
        per_category: objects of each category, by rising id.
        notes: what the reader of another layout has to report, a line each.
        places: by the name of a count above, where the first few of what it counts are.
    """

    file: str
    images: int
    images_without_objects: int
    objects: int
    categories: int
    crowd: int = 0
    zero_size: int = 0
    outside: int = 0
    bad_boxes: int = 0
    clipped: int = 0
    box_doubt: str = ""
    missing_area: int = 0
    missing_iscrowd: int = 0
    duplicate_file_names: int = 0
    duplicate_category_names: int = 0
    unreadable: int = 0
    missing_files: tuple[str, ...] = ()
    unreadable_files: tuple[str, ...] = ()
    other_separators: int = 0
    per_category: tuple[CategoryCount, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all counts by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return a summary line, and a line for each thing that was dropped, repaired or looks wrong."""
        summary = (
            f"{self.file}: {counted(self.images, 'image')} ({self.images_without_objects:,} without objects), "
            f"{counted(self.objects, 'object')}, {counted(self.categories, 'category', 'categories')}"
        )
        return [summary, *(f"  {text}" for text in self.remarks())]

    def remarks(self) -> list[str]:
        """Return a line for each thing that was dropped, repaired or looks wrong."""
        return [finding.text for finding in self._found()]

    def findings(self) -> list[Finding]:
        """Return the same with the name of the file."""
        return [replace(finding, text=f"{self.file}: {finding.text}") for finding in self._found()]

    def _found(self) -> list[Finding]:
        doubts = [Finding("D28", "warning", self.objects, f"{self.box_doubt}; {BOX_REMEDY}")] if self.box_doubt else []
        found = [*doubts, *(Finding("Q12", "info", 1, note) for note in self.notes)]
        for remark in _remarks():
            value = getattr(self, remark.field)
            names = value if isinstance(value, tuple) else ()
            count = len(names) if names else value
            if count:
                listing = f" ({listed(names)})" if names else ""
                text = counted(count, *remark.noun) + remark.text + listing
                places = names or self.places.get(remark.field, ())
                found.append(Finding(remark.code, remark.severity, count, text, places, remark.remedy))
        return found


@dataclass(frozen=True)
class _Remark:
    """What a report has to say of one of its counts, or of names that it lists."""

    field: str
    code: str
    severity: Severity
    noun: tuple[str, str]
    text: str
    remedy: str = ""


def _remarks() -> tuple[_Remark, ...]:
    left_out, again = ": left out on request", "get the file again"
    return (
        _Remark("crowd", "Q12", "info", ("crowd region", ""), ": not trained on, ignored in evaluation"),
        _Remark("zero_size", "D07", "warning", BOX, " without width or height: dropped", "correct or remove them"),
        _Remark("outside", "D16", "warning", BOX, " outside their image: dropped", "correct or remove them"),
        _Remark(
            "bad_boxes", "D09", "warning", ("malformed box", "malformed boxes"), ": dropped on request", "correct them"
        ),
        _Remark("clipped", "Q12", "info", BOX, " clipped to their image"),
        _Remark("missing_area", "Q12", "info", ("annotation", ""), " without area: width x height used"),
        _Remark("missing_iscrowd", "Q12", "info", ("annotation", ""), " without iscrowd: 0 used"),
        _Remark("missing_files", "D17", "warning", ("missing image file", ""), left_out, again),
        _Remark("unreadable_files", "D18", "warning", ("image file", ""), f" that cannot be read{left_out}", again),
        _Remark(
            "other_separators", "Q12", "info", ("file name", ""), " with another separator than /, read as if it were /"
        ),
        _Remark(
            "unreadable",
            "D18",
            "warning",
            ("image", ""),
            " that cannot be read: others take their place in training",
            again,
        ),
        _Remark(
            "duplicate_file_names",
            "Q01",
            "warning",
            ("image shares", "images share"),
            " a file with another image",
            "list each image once, with all of its objects",
        ),
        _Remark(
            "duplicate_category_names",
            "Q13",
            "warning",
            ("category shares", "categories share"),
            " a name with another category",
            "give them one id, or names of their own",
        ),
    )
