"""The confusion matrix of a detector at its operating point, and the file that ``eval --confusion`` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_detr.atomic_files import write_file
from lora_detr.data.coco.categories import UNUSED, CategoryMap
from lora_detr.errors import ConfigError
from lora_detr.evaluation.coco_eval import CocoEvaluator
from lora_detr.evaluation.error_kinds import (
    ERRORS,
    NEAR_IOU,
    ErrorKinds,
    JudgedImage,
    Kind,
    count_errors,
    judged_images,
)
from lora_detr.evaluation.matching import MATCH_IOU, Integers, iou
from lora_detr.json_value import json_text
from lora_detr.recipe.preparation import OperatingPoint, Suppression

BACKGROUND = "background"
SUFFIXES = (".json", ".csv")


def confusion_matrix(images: Iterable[JudgedImage], num_classes: int) -> Integers:
    """Count objects by their class (rows) and the class that they were found as (columns).

    The last column has objects that nothing was found on, the last row detections that are on no object of their own.
    So a row sums to the objects of its class, and a column to the detections of its class; crowd regions and what lies
    on them are in neither. A detection that is right is on its object. Of the others the best one first takes the
    object of another class that it overlaps most, with IoU >= 0.5, if no detection is on that one yet.

    Args:
        images: at the operating point.
        num_classes: K.

    Returns:
        int64 [K + 1, K + 1].
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for judged in images:
        image = judged.image
        truth = np.full(len(image.labels), num_classes, dtype=np.int64)
        right = judged.kinds == Kind.RIGHT
        truth[right] = image.object_labels[judged.targets[right]]
        free = ~image.crowd
        free[judged.targets[right]] = False
        others = np.flatnonzero(judged.kinds == Kind.WRONG_CLASS)
        overlap = iou(image.boxes[others], image.object_boxes)
        overlap[image.labels[others, None] == image.object_labels] = 0.0
        for i, row in zip(others, overlap, strict=True):
            best = int(np.where(free, row, 0.0).argmax())
            if free[best] and row[best] >= MATCH_IOU:
                truth[i], free[best] = image.object_labels[best], False
        counted = judged.kinds != Kind.IGNORED
        np.add.at(matrix, (truth[counted], image.labels[counted]), 1)
        np.add.at(matrix[:, num_classes], image.object_labels[free], 1)
    return matrix


@dataclass(frozen=True, eq=False)
class Confusion:
    """What a split says about the errors of a detector at its operating point.

    Attributes:
        categories: labels of the model.
        point: thresholds, and whether to suppress.
        matrix: int64 [K + 1, K + 1], see ``confusion_matrix``.
        errors: their kinds.
        images: all of the split, with what was found.
    """

    categories: CategoryMap
    point: OperatingPoint
    matrix: Integers
    errors: ErrorKinds
    images: Sequence[JudgedImage]

    @property
    def labels(self) -> list[int]:
        """Return the labels that stand for a class."""
        return [label for label, name in enumerate(self.categories.names) if name != UNUSED]

    def to_json(self) -> dict[str, Any]:
        """Return definitions, matrix and kinds of errors; classes by their original ids."""
        ids, names = self.categories.ids, self.categories.names
        shown = [*self.labels, len(ids)]
        rows = [
            {
                "category_id": ids[label],
                "name": names[label],
                "objects": int(self.errors.objects[label]),
                "right": self.errors.right(label),
                **self.errors.counts(label),
            }
            for label in self.labels
        ]
        total = {"objects": int(self.errors.objects.sum()), "right": self.errors.right(), **self.errors.counts()}
        return {
            "match_iou": MATCH_IOU,
            "near_iou": NEAR_IOU,
            "operating_point": self.point.model_dump(mode="json"),
            "classes": [*({"id": ids[label], "name": names[label]} for label in self.labels), BACKGROUND],
            "matrix": self.matrix[np.ix_(shown, shown)].tolist(),
            "error_kinds": total,
            "ignored": self.errors.ignored(),
            "per_class": rows,
        }

    def to_csv(self) -> str:
        """Return a row for each true class: what its objects were found as, and kinds of errors of its detections."""
        ids, names = self.categories.ids, self.categories.names
        shown = [*self.labels, len(ids)]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"found as {names[label]}" for label in self.labels]
        writer.writerow(["category_id", "name", *columns, f"found as {BACKGROUND}", "objects", "right", *ERRORS])
        for label in self.labels:
            counts = [self.errors.objects[label], self.errors.right(label), *self.errors.counts(label).values()]
            writer.writerow([ids[label], names[label], *self.matrix[label, shown].tolist(), *map(int, counts)])
        writer.writerow(["", BACKGROUND, *self.matrix[-1, shown].tolist(), *[""] * (2 + len(ERRORS))])
        return text.getvalue()


def confusion_of(
    evaluator: CocoEvaluator, point: OperatingPoint, categories: CategoryMap, suppression: Suppression
) -> Confusion:
    """Judge all detections of a split at an operating point; arguments as of ``judged_images``."""
    images = list(judged_images(evaluator, point, categories, suppression))
    count = categories.num_classes
    return Confusion(categories, point, confusion_matrix(images, count), count_errors(images, count), images)


def check_suffix(path: Path) -> None:
    """Refuse a file that is neither JSON nor CSV.

    Raises:
        ConfigError: its suffix is another one.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--confusion {path}: expected a file that ends in .json or .csv", "the suffix is the format")


def write_confusion(path: Path, confusion: Confusion) -> None:
    """Write the matrix and the kinds of errors, as JSON or CSV by the suffix of the file.

    Raises:
        OutputError: the file cannot be written.
    """
    if path.suffix.lower() == ".csv":
        text = confusion.to_csv()
    else:
        text = json_text(confusion.to_json(), indent=1) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))
