"""Precision by recall, and AP of each class by size of object, as COCO has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_detr.evaluation.coco_eval import CocoEvaluator, best_backend, evaluated, index_of

AREAS = ("all", "small", "medium", "large")
"""Sizes of objects: below 32 x 32 pixels, up to 96 x 96, and above; COCO's order."""

_SMALL, _LARGE = 32.0**2, 96.0**2


@dataclass(frozen=True, eq=False)
class PrecisionTable:
    """COCO's interpolated precision at 100 detections. Classes are in the order of their original ids.

    Attributes:
        names: of the C classes.
        category_ids: original ids [C].
        ious: [10], 0.5 to 0.95.
        recalls: [101], 0 to 1.
        precision: [10, 101, C, 4]: IoU, recall, class, size as in ``AREAS``; -1 where there is no object.
        objects: int64 [C, 4], without crowd regions.
    """

    names: Sequence[str]
    category_ids: Sequence[int]
    ious: NDArray[np.float64]
    recalls: NDArray[np.float64]
    precision: NDArray[np.float64]
    objects: NDArray[np.int64]

    def average(self, place: int | None = None, area: int = 0, iou: int | None = None) -> float | None:
        """Return AP in [0, 1]; None where there is nothing to measure.

        Args:
            place: of the class; None for all.
            area: place in ``AREAS``.
            iou: place in ``ious``; None for the mean over all.
        """
        found = self.precision[..., area]
        found = found if iou is None else found[iou : iou + 1]
        found = found if place is None else found[:, :, place : place + 1]
        measured = found[found > -1]
        return float(measured.mean()) if measured.size else None

    def curve(self, iou: int, place: int | None = None) -> NDArray[np.float64] | None:
        """Return precision at each of ``recalls`` [101], the mean over classes unless one is given; None as above."""
        found = self.precision[iou, :, :, 0]
        found = found[:, found[0] > -1] if place is None else found[:, [place]]
        return None if not found.size or (found < 0).all() else found.mean(axis=1)


def precision_table(evaluator: CocoEvaluator) -> PrecisionTable:
    """Return what an evaluation measures of every class, at every IoU and recall."""
    backend = best_backend()
    evaluation = evaluated(backend, *(index_of(backend, dataset) for dataset in evaluator.datasets()))
    categories = [evaluator.categories_by_id[rank] for rank in evaluation.params.catIds]
    truth = evaluator.split.ground_truth
    real = ~truth.crowd
    sized = (
        np.ones_like(truth.areas, dtype=np.bool_),
        truth.areas <= _SMALL,
        (truth.areas >= _SMALL) & (truth.areas <= _LARGE),
        truth.areas >= _LARGE,
    )
    objects = [[int((real & size & (truth.category_ids == i)).sum()) for size in sized] for i, _ in categories]
    return PrecisionTable(
        [name for _, name in categories],
        [category_id for category_id, _ in categories],
        np.asarray(evaluation.params.iouThrs, dtype=np.float64),
        np.asarray(evaluation.params.recThrs, dtype=np.float64),
        np.asarray(evaluation.eval["precision"], dtype=np.float64)[..., -1],
        np.array(objects, dtype=np.int64).reshape(-1, len(AREAS)),
    )
