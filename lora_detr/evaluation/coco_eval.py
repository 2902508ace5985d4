"""COCO's average precision and recall, independent of the order in which results arrive.

pycocotools is the reference; hotcoco gives the same numbers in a small part of the time, and is used where installed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_detr.atomic_files import write_file
from lora_detr.data.coco.categories import UNUSED
from lora_detr.data.coco.report import Problem
from lora_detr.data.coco.split import CocoSplit
from lora_detr.errors import DataError
from lora_detr.recipe.preparation import OperatingPoint
from lora_detr.structures import Detections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers, in the order in which pycocotools gives them."""

USAGE = ("AP_nms", "duplicate_rate")
"""Names of what stands beside them: AP with suppression at IoU 0.7, and the share of detections that are duplicates."""

SUPPRESSION_IOU = 0.7
"""IoU of the suppression that AP is compared with, and above which two detections show the same thing."""

Backend = Literal["pycocotools", "hotcoco"]
MODULES: dict[Backend, tuple[str, str]] = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
    "hotcoco": ("hotcoco", "hotcoco"),
}
"""Where each package has its classes ``COCO`` and ``COCOeval``."""

# The process that imported this module; one that was forked from it later is another.
_PROCESS = os.getpid()

COLUMNS = 8
"""Columns of a row of ``CocoEvaluator.rows``: place of the image in the split, query, label, score, x1, y1, x2, y2.

A place and not an id: a float64 holds integers up to 2 ** 53 only, and ids may have 63 bits.
"""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """Detections of an image, n by falling score, beside its T objects; both may be none.

    Attributes:
        boxes: float64 [n, 4], xyxy in pixels.
        scores: float64 [n].
        labels: int64 [n].
        object_boxes: float64 [T, 4], xyxy in pixels.
        object_labels: int64 [T].
        crowd: bool [T].
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    object_boxes: NDArray[np.float64]
    object_labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def take(self, kept: NDArray[np.int64]) -> LabelledImage:
        """Return the image with some of its detections."""
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept])


@dataclass(frozen=True)
class ClassMetrics:
    """Average precision of one category.

    Attributes:
        category_id: original id.
        name: of the category.
        AP: over IoU 0.5 to 0.95, in [0, 1]; -1 if the category has no object.
        AP50: at IoU 0.5, likewise.
        objects: in the ground truth, without crowd regions.
    """

    category_id: int
    name: str
    AP: float
    AP50: float
    objects: int


@dataclass(frozen=True)
class Usage:
    """What a split says about the use of a detector (``operating_point``).

    Attributes:
        point: thresholds, and whether to suppress.
        duplicate_rate: share, in [0, 1], of the detections above the score of best F1 that overlap a better one of
            their class by 0.7 or more, where the better one is on the object that they fit best. Of detections as they
            are, without suppression; None where there are none.
        few: classes with too few objects for a score of their own.
        suppressed_precision: AP with suppression at IoU 0.7, in [0, 1]; -1 where there is nothing to measure.
    """

    point: OperatingPoint
    duplicate_rate: float | None
    few: tuple[str, ...] = ()
    suppressed_precision: float = -1.0

    def columns(self) -> dict[str, float | None]:
        """Return the numbers that stand beside COCO's in tables."""
        return dict(zip(USAGE, (self.suppressed_precision, self.duplicate_rate), strict=True))


@dataclass(frozen=True)
class CocoMetrics:
    """The result of an evaluation.

    Attributes:
        values: COCO's twelve numbers by name, in [0, 1]; -1 where there is no ground truth, so nothing to measure
            (of that size, or at all: then every object is a crowd region, or there is none).
        per_class: by rising category id.
        left_out: images of the split that are in none of the numbers, because they cannot be read.
        usage: of the detector; None where it was not asked for.
    """

    values: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    left_out: int = 0
    usage: Usage | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the twelve numbers, the table of classes, and what else is known."""
        more: dict[str, Any] = {"left_out": self.left_out} if self.left_out else {}
        if self.usage is not None:
            more |= {**self.usage.columns(), "operating_point": self.usage.point.model_dump(mode="json")}
        return {**self.values, **more, "per_class": [asdict(row) for row in self.per_class]}


class CocoEvaluator:
    """Collects detections and compares them with the ground truth of a split.

    Ground truth is what the annotation file says, crowd regions included, but for boxes that ``load_coco`` drops
    (without width or height, or outside their image), which no detection could match.

    AP is COCO's at 100 detections whatever the number kept: of an image with more (see ``postprocess``), the 100 best
    *of each category* count, so that keeping 300 can still raise AP.

    Results do not depend on the order in which images are added: everything is sorted by (image id, falling score,
    query, label) first.

    Args:
        split: images, ground truth and the labels of the model. For part of the images give ``split.subset(ids)``.
    """

    def __init__(self, split: CocoSplit) -> None:
        self._split = split
        self._ids = split.image_ids  # also of images that are left out later, so that places stay what they are
        self._places = {image_id: place for place, image_id in enumerate(self._ids)}
        self._rows: dict[int, Tensor] = {}  # by place
        self.left_out: dict[int, Problem] = {}

    def __len__(self) -> int:
        """Return for how many images results were added."""
        return len(self._rows)

    @property
    def split(self) -> CocoSplit:
        """Images and ground truth, without those that were left out."""
        return self._split

    def add(self, image_id: int, detections: Detections) -> None:
        """Add the detections of one image, on any device; an image that was added before is left as it is.

        Raises:
            ValueError: the image is not in the split.
        """
        place = self._places.get(image_id)
        if place is None:
            raise ValueError(f"image id {image_id} is not in the split")
        if place in self._rows:
            return
        n = len(detections.scores)
        rows = torch.empty((n, COLUMNS), dtype=torch.float64)
        rows[:, 0] = place
        rows[:, 1] = detections.queries
        rows[:, 2] = detections.labels
        rows[:, 3] = detections.scores
        rows[:, 4:] = detections.boxes_xyxy_pixels
        self._rows[place] = rows

    def rows(self) -> Tensor:
        """Return everything added as one tensor, to be gathered over ranks.

        Returns:
            float64 [n, 8] in canonical order; columns as in ``COLUMNS``.
        """
        if not self._rows:
            return torch.empty((0, COLUMNS), dtype=torch.float64)
        rows = torch.cat([self._rows[place] for place in sorted(self._rows)])
        keys = (rows[:, 2], rows[:, 1], -rows[:, 3], rows[:, 0])
        return rows[torch.from_numpy(np.lexsort([key.numpy() for key in keys]))]

    def add_rows(self, rows: Tensor) -> None:
        """Add what ``rows`` of another rank's evaluator returned; images added before are left as they are."""
        rows = rows.cpu()
        rows = rows[rows[:, 0].sort(stable=True).indices]
        places, counts = torch.unique_consecutive(rows[:, 0], return_counts=True)
        for place, part in zip(places.tolist(), torch.split(rows, counts.tolist()), strict=True):
            self._rows.setdefault(int(place), part)

    def leave_out(self, problems: Mapping[int, Problem]) -> None:
        """Forget images that cannot be read, their objects and what was added for them.

        Args:
            problems: of each, by image id; may be empty.

        Raises:
            DataError: no image is left.
        """
        if not problems:
            return
        if len(problems) == len(self._split):
            first = next(iter(problems.values()))
            raise DataError(f"none of {len(problems)} images can be read; the first: {first.text}", code=first.code)
        self._split = self._split.without(problems)
        for image_id in problems:
            self._rows.pop(self._places.pop(image_id, -1), None)
        self.left_out |= problems

    def labelled_images(self) -> Iterator[LabelledImage]:
        """Yield every image of the split with what was found in it."""
        truth, categories = self._split.ground_truth, self._split.categories
        labels = np.array([categories.label_of(i) for i in truth.category_ids.tolist()], dtype=np.int64)
        corners = truth.boxes_xywh_pixels.copy()
        corners[:, 2:] += corners[:, :2]
        nothing = torch.empty((0, COLUMNS), dtype=torch.float64)
        ids = np.array(self._split.image_ids, dtype=np.int64)
        starts, ends = (np.searchsorted(truth.image_ids, ids, side=side) for side in ("left", "right"))
        for image_id, start, end in zip(ids.tolist(), starts, ends, strict=True):
            rows = self._rows.get(self._places[image_id], nothing).numpy()
            own = slice(start, end)
            yield LabelledImage(
                np.ascontiguousarray(rows[:, 4:]),
                rows[:, 3].copy(),
                rows[:, 2].astype(np.int64),
                corners[own],
                labels[own],
                truth.crowd[own],
            )

    def predictions(self) -> list[dict[str, Any]]:
        """Return the detections as COCO results, in canonical order, with original category ids."""
        ids = self._split.categories.ids
        return [
            {
                "image_id": self._ids[int(place)],
                "category_id": ids[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for place, _, label, score, x1, y1, x2, y2 in self.rows().tolist()
        ]

    def write_predictions(self, path: Path) -> None:
        """Write COCO results, one a line; the bytes depend on the detections only.

        Raises:
            OutputError: the file cannot be written.
        """
        lines = ",\n".join(json.dumps(entry) for entry in self.predictions())
        write_file(path, (f"[\n{lines}\n]\n" if lines else "[]\n").encode())

    def datasets(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return ground truth and detections as new COCO data sets: pycocotools writes into their entries.

        Packages may take ids for floats, so images and categories are numbered from 0 in the order of their ids.
        Annotations are numbered from 1: pycocotools takes a match with id 0 for no match.
        """
        split, categories = self._split, self.categories_by_id
        ranks = {category_id: rank for rank, (category_id, _) in enumerate(categories)}
        images = [{"id": self._places[r.id], "width": r.width, "height": r.height} for r in split.records]
        truth = split.ground_truth
        objects = [
            {
                "image_id": self._places[image_id],
                "category_id": ranks[category_id],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for image_id, category_id, box, area, crowd in zip(
                truth.image_ids.tolist(),
                truth.category_ids.tolist(),
                truth.boxes_xywh_pixels.tolist(),
                truth.areas.tolist(),
                truth.crowd.tolist(),
                strict=True,
            )
        ]
        found = [
            {
                **entry,
                "image_id": self._places[entry["image_id"]],
                "category_id": ranks[entry["category_id"]],
                "area": entry["bbox"][2] * entry["bbox"][3],
                "iscrowd": 0,
            }
            for entry in self.predictions()
        ]
        shared = {
            "images": images,
            "categories": [{"id": rank, "name": name} for rank, (_, name) in enumerate(categories)],
        }
        of_truth, of_found = (
            {**shared, "annotations": [{**entry, "id": i} for i, entry in enumerate(part, start=1)]}
            for part in (objects, found)
        )
        return of_truth, of_found

    def compute(self, backend: Backend | None = None) -> CocoMetrics:
        """Return COCO's numbers over all images of the split; images without results count as found nothing.

        Args:
            backend: the package that computes them; None takes the fastest that is installed.
        """
        backend = backend or best_backend()
        evaluation = evaluated(backend, *(index_of(backend, dataset) for dataset in self.datasets()))
        values = dict(zip(METRICS, map(float, evaluation.stats), strict=True))
        return CocoMetrics(values, self._per_class(evaluation), len(self.left_out))

    def _per_class(self, evaluation: Any) -> tuple[ClassMetrics, ...]:
        split = self._split
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
        real = split.ground_truth.category_ids[~split.ground_truth.crowd]
        categories = self.categories_by_id
        table = []
        for k, rank in enumerate(evaluation.params.catIds):
            category_id, name = categories[rank]
            objects = int((real == category_id).sum())
            if name == UNUSED and not objects:
                continue
            average, average50 = _mean(precision[:, :, k]), _mean(precision[0, :, k])
            table.append(ClassMetrics(category_id, name, average, average50, objects))
        return tuple(table)

    @property
    def categories_by_id(self) -> list[tuple[int, str]]:
        """Return id and name of all categories by rising id."""
        return sorted(zip(self._split.categories.ids, self._split.categories.names, strict=True))


def _mean(precision: NDArray[np.float64]) -> float:
    """Return the mean of the entries that were measured, -1 if none was."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def best_backend() -> Backend:
    """Return the fastest package that is installed.

    The threads of hotcoco do not outlive a fork: a process that was forked would wait for them for ever.
    """
    return "hotcoco" if find_spec("hotcoco") and os.getpid() == _PROCESS else "pycocotools"


def index_of(backend: Backend, dataset: dict[str, Any]) -> Any:
    """Return what a package makes of a COCO data set, which it keeps."""
    index = importlib.import_module(MODULES[backend][0]).COCO()
    index.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def evaluated(backend: Backend, truth: Any, found: Any) -> Any:
    """Return a package's evaluation of detections against ground truth, as ``index_of`` gave both."""
    evaluation = importlib.import_module(MODULES[backend][1]).COCOeval(truth, found, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
