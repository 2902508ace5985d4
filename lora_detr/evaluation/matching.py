"""Which detections are on which objects of an image, as COCO matches them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from lora_detr.data.coco.categories import UNUSED, CategoryMap
from lora_detr.evaluation.coco_eval import LabelledImage

FLOOR = 0.05
"""Lower scores are never best, and there are many of them."""

MATCH_IOU = 0.5
"""IoU from which on a detection is on an object."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


def match(overlap: Floats) -> Integers:
    """Return on which object each detection is, -1 for none: the best of those that no better detection is on.

    Args:
        overlap: [n, T], IoU with the objects that count, 0 with others, n by falling score.
    """
    target = np.full(len(overlap), -1, dtype=np.int64)
    if not overlap.size:
        return target
    taken = np.zeros(overlap.shape[1], dtype=np.bool_)
    for i in np.flatnonzero((overlap >= MATCH_IOU).any(axis=1)):
        free = np.where(taken, 0.0, overlap[i])
        best = int(free.argmax())
        if free[best] >= MATCH_IOU:
            target[i], taken[best] = best, True
    return target


def on_crowd(image: LabelledImage) -> Flags:
    """Return which detections lie on a crowd region of their class, which counts them neither as right nor as wrong."""
    of_crowd = (image.labels[:, None] == image.object_labels) & image.crowd
    found: Flags = (of_crowd & (_covered(image.boxes, image.object_boxes) >= MATCH_IOU)).any(axis=1)
    return found


def named(image: LabelledImage, categories: CategoryMap) -> LabelledImage:
    """Leave out low scores, and labels that stand for nothing."""
    stands = np.array([name != UNUSED for name in categories.names])
    return image.take(np.flatnonzero((image.scores >= FLOOR) & stands[image.labels]))


def iou(first: Floats, second: Floats) -> Floats:
    """Return the overlap of boxes [n, 4] with others [T, 4], xyxy: [n, T], 0 for boxes without area."""
    overlaps: Floats = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    return np.nan_to_num(overlaps)


def _covered(boxes: Floats, regions: Floats) -> Floats:
    """Return which share of each box [n, 4] lies in each region [T, 4]: [n, T]."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-12)
    covered: Floats = (high - low).clip(min=0).prod(axis=2) / area[:, None]
    return covered
