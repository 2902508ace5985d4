"""What is wrong with the detections at the operating point, in the manner of TIDE (Bolya et al., ECCV 2020).

A detection that reaches the score of its class is, with the first of these that fits:

- right: IoU >= 0.5 with an object of its class that no better detection is on;
- ignored: at least half of it lies in a crowd region of its class, as COCO has it;
- double: IoU >= 0.5 with an object of its class, which a better detection is on;
- wrong class: IoU >= 0.5 with an object of another class;
- poorly placed: IoU >= 0.1 with an object of its class;
- background: none of these.

An object is found if a detection is right on it, and missed if besides no detection of another class and no poorly
placed one is on it. Crowd regions are no objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from lora_detr.data.coco.categories import CategoryMap
from lora_detr.evaluation.coco_eval import CocoEvaluator, LabelledImage
from lora_detr.evaluation.matching import MATCH_IOU, Flags, Integers, iou, match, named, on_crowd
from lora_detr.evaluation.postprocess import unsuppressed
from lora_detr.recipe.preparation import OperatingPoint, Suppression

NEAR_IOU = 0.1
"""IoU from which on a detection is meant for an object of its class, but poorly placed."""


class Kind(IntEnum):
    """What a detection is."""

    RIGHT = 0
    DOUBLE = 1
    WRONG_CLASS = 2
    POORLY_PLACED = 3
    BACKGROUND = 4
    IGNORED = 5

    @property
    def words(self) -> str:
        """Return the name in plain English."""
        return self.name.lower().replace("_", " ")


MISSED = "missed"
ERRORS = (*(Kind(number).words for number in range(Kind.DOUBLE, Kind.IGNORED)), MISSED)
"""The five kinds of errors: four of detections, and one of objects."""


@dataclass(frozen=True, eq=False)
class JudgedImage:
    """An image with its detections at the operating point.

    Attributes:
        image: n detections and T objects.
        kinds: [n], each a ``Kind``.
        targets: [n], the object that a detection is right, double, of the wrong class or poorly placed on, else -1.
        missed: bool [T].
    """

    image: LabelledImage
    kinds: Integers
    targets: Integers
    missed: Flags

    @property
    def objects(self) -> int:
        """Return how many objects there are, without crowd regions."""
        return int((~self.image.crowd).sum())

    @property
    def right(self) -> int:
        """Return how many detections are right."""
        return int((self.kinds == Kind.RIGHT).sum())

    @property
    def errors(self) -> int:
        """Return how many detections are wrong and objects missed."""
        return int(((self.kinds != Kind.RIGHT) & (self.kinds != Kind.IGNORED)).sum() + self.missed.sum())

    @property
    def f1(self) -> float | None:
        """Return F1 of the image; None where there is neither an object nor a detection that counts."""
        total = int((self.kinds != Kind.IGNORED).sum()) + self.objects
        return 2 * self.right / total if total else None


def judged_images(
    evaluator: CocoEvaluator, point: OperatingPoint, categories: CategoryMap, suppression: Suppression
) -> Iterator[JudgedImage]:
    """Yield all images of a split, in the order of their ids, as ``predict`` would show them.

    Args:
        evaluator: holds the detections of all images, without suppression.
        point: thresholds, and whether to suppress.
        categories: of the model.
        suppression: whether only detections of one class suppress each other.
    """
    least = np.array(point.scores)
    for image in evaluator.labelled_images():
        image = named(image, categories)
        if point.nms_iou is not None:
            boxes, scores, labels = (torch.from_numpy(part) for part in (image.boxes, image.scores, image.labels))
            image = image.take(unsuppressed(boxes, scores, labels, point.nms_iou, suppression).numpy())
        yield judge(image.take(np.flatnonzero(image.scores >= least[image.labels])))


def judge(image: LabelledImage) -> JudgedImage:
    """Say of each detection what it is, and which objects are missed; all detections count, whatever their score."""
    same = image.labels[:, None] == image.object_labels
    overlap = np.where(image.crowd, 0.0, iou(image.boxes, image.object_boxes))  # [n, T]
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    targets = match(own)
    kinds = np.full(len(targets), Kind.BACKGROUND, dtype=np.int64)
    kinds[targets >= 0] = Kind.RIGHT
    kinds[(targets < 0) & on_crowd(image)] = Kind.IGNORED
    if overlap.size:
        for kind, part, least in (
            (Kind.DOUBLE, own, MATCH_IOU),
            (Kind.WRONG_CLASS, other, MATCH_IOU),
            (Kind.POORLY_PLACED, own, NEAR_IOU),
        ):
            chosen = (kinds == Kind.BACKGROUND) & (part.max(axis=1) >= least)
            kinds[chosen], targets[chosen] = kind, part[chosen].argmax(axis=1)
    missed = ~image.crowd
    missed[targets[targets >= 0]] = False
    return JudgedImage(image, kinds, targets, missed)


@dataclass(frozen=True, eq=False)
class ErrorKinds:
    """Counts over a split, by label of the model (K of them).

    Attributes:
        detections: int64 [K, 6], by the label of the detection and its ``Kind``.
        objects: int64 [K], without crowd regions.
        missed: int64 [K].
    """

    detections: Integers
    objects: Integers
    missed: Integers

    def counts(self, label: int | None = None) -> dict[str, int]:
        """Return kind of error -> how many there are, of a label or of all."""
        chosen = slice(None) if label is None else slice(label, label + 1)
        found = self.detections[chosen].sum(axis=0)
        counts = {Kind(number).words: int(found[number]) for number in range(Kind.DOUBLE, Kind.IGNORED)}
        return {**counts, MISSED: int(self.missed[chosen].sum())}

    def right(self, label: int | None = None) -> int:
        """Return how many detections are right, of a label or of all."""
        return int(self.detections[slice(None) if label is None else label, ..., Kind.RIGHT].sum())

    def ignored(self) -> int:
        """Return how many detections lie on crowd regions."""
        return int(self.detections[:, Kind.IGNORED].sum())

    def precision(self, label: int | None = None) -> float | None:
        """Return the share of detections that are right; None without a detection."""
        shown = self.right(label) + sum(count for kind, count in self.counts(label).items() if kind != MISSED)
        return self.right(label) / shown if shown else None

    def recall(self, label: int | None = None) -> float | None:
        """Return the share of objects that are found; None without an object."""
        objects = int(self.objects.sum()) if label is None else int(self.objects[label])
        return self.right(label) / objects if objects else None


def count_errors(images: Iterable[JudgedImage], num_classes: int) -> ErrorKinds:
    """Count what is wrong over the images of a split."""
    detections = np.zeros((num_classes, len(Kind)), dtype=np.int64)
    objects, missed = (np.zeros(num_classes, dtype=np.int64) for _ in range(2))
    for judged in images:
        image = judged.image
        np.add.at(detections, (image.labels, judged.kinds), 1)
        np.add.at(objects, image.object_labels[~image.crowd], 1)
        np.add.at(missed, image.object_labels[judged.missed], 1)
    return ErrorKinds(detections, objects, missed)
