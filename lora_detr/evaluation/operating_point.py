"""How a detector is best used, and how often it finds an object twice: chosen and counted on a labelled split.

COCO's AP looks at every score threshold at once. Whoever uses a detector needs one, so here detections are matched to
objects once, as COCO does at IoU 0.5, and for each class the score is taken at which F1 is highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import listed
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator, CocoMetrics, LabelledImage, Usage
from lora_detr.evaluation.matching import FLOOR, Flags, Floats, Integers, iou, match, named, on_crowd
from lora_detr.evaluation.postprocess import unsuppressed
from lora_detr.recipe.preparation import OperatingPoint, Preparation, Suppression, describe_suppression

MIN_OBJECTS = 20
"""With fewer objects of a class its best score is chance, and the overall one is used."""

NOTABLE_GAIN = 0.01
"""AP that suppression must gain to be worth a word."""

# Suppression is one more thing to explain and to carry along, so F1 must gain more than what chance moves.
SUPPRESSION_GAIN = 0.005
SUPPRESSION_IOUS = (None, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True, eq=False)
class _Matched:
    """Detections of an image or of all, by falling score, n of them.

    Attributes:
        scores: [n].
        labels: [n].
        correct: [n], on an object that no better one is on.
        duplicate: [n], see ``Usage.duplicate_rate``.
    """

    scores: Floats
    labels: Integers
    correct: Flags
    duplicate: Flags


def measure(found: Mapping[float | None, CocoEvaluator], config: Preparation) -> CocoMetrics:
    """Return COCO's numbers of a detector as it is, AP with suppression, and how the detector is best used.

    Args:
        found: detections with (``SUPPRESSION_IOU``) and without suppression (None) of the same images.
        config: of the detector.
    """
    suppressed = found[SUPPRESSION_IOU].compute().values["AP"]
    usage = choose_usage(found[None], config.categories, config.suppression)
    return replace(found[None].compute(), usage=replace(usage, suppressed_precision=suppressed))


def choose_usage(evaluator: CocoEvaluator, categories: CategoryMap, suppression: Suppression) -> Usage:
    """Choose thresholds and suppression.

    Args:
        evaluator: holds the detections of all images, without suppression.
        categories: of the model.
        suppression: whether only detections of one class suppress each other.
    """
    counts = np.zeros(categories.num_classes, dtype=np.int64)
    parts: list[list[_Matched]] = [[] for _ in SUPPRESSION_IOUS]
    for image in evaluator.labelled_images():
        np.add.at(counts, image.object_labels[~image.crowd], 1)
        for found, matched in zip(parts, _match_image(named(image, categories), suppression), strict=True):
            found.append(matched)
    raw, *suppressed = map(_joined, parts)
    points = [_point(found, counts, iou) for found, iou in zip((raw, *suppressed), SUPPRESSION_IOUS, strict=True)]
    plain, best = points[0], max(points, key=lambda point: point.f1)
    used = raw.scores >= np.array(plain.scores)[raw.labels]
    rate = float(raw.duplicate[used].mean()) if used.any() else math.nan
    chosen = best if best.f1 > plain.f1 + SUPPRESSION_GAIN else plain
    few = [
        name
        for name, own, count in zip(categories.names, chosen.class_scores, counts, strict=True)
        if count and own is None
    ]
    return Usage(chosen, None if math.isnan(rate) else rate, tuple(few))


def _point(matched: _Matched, counts: Integers, nms_iou: float | None) -> OperatingPoint:
    overall = _best_score(matched.scores, matched.correct, int(counts.sum()))
    chosen: list[float | None] = []
    for label, count in enumerate(counts.tolist()):
        own = matched.labels == label
        chosen.append(_best_score(matched.scores[own], matched.correct[own], count) if count >= MIN_OBJECTS else None)
    point = OperatingPoint(score=overall, class_scores=tuple(chosen), nms_iou=nms_iou, f1=0.0)
    used = matched.scores >= np.array(point.scores)[matched.labels]
    return point.model_copy(update={"f1": _f1(int(matched.correct[used].sum()), int(used.sum()), int(counts.sum()))})


def _f1(correct: int, detections: int, objects: int) -> float:
    return 2 * correct / max(detections + objects, 1)


def _best_score(scores: Floats, correct: Flags, objects: int) -> float:
    """Return a score between the last detection that F1 gains from and the next; the floor where there is none."""
    if not scores.size:
        return FLOOR
    f1 = 2 * correct.cumsum() / (np.arange(1, scores.size + 1) + objects)
    following = np.append(scores[1:], FLOOR)
    f1[scores == following] = 0  # a threshold does not part equal scores
    best = int(f1.argmax())
    return float((scores[best] + following[best]) / 2)


def _joined(parts: Sequence[_Matched]) -> _Matched:
    """Join the detections of all images, by falling score."""
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    labels, correct, duplicate = (
        np.concatenate(column)[order]
        for column in zip(*((part.labels, part.correct, part.duplicate) for part in parts), strict=True)
    )
    return _Matched(scores[order], labels, correct, duplicate)


def _match_image(image: LabelledImage, suppression: Suppression) -> Iterator[_Matched]:
    """Yield the detections of an image under each suppression, without those on crowd regions."""
    same = image.labels[:, None] == image.object_labels
    overlap = np.where(same & ~image.crowd, iou(image.boxes, image.object_boxes), 0.0)  # [n, T]
    covered = on_crowd(image)
    between = iou(image.boxes, image.boxes)
    boxes, scores, labels = (torch.from_numpy(part) for part in (image.boxes, image.scores, image.labels))
    for nms_iou in SUPPRESSION_IOUS:
        kept = np.arange(len(image.labels))
        if nms_iou is not None:
            kept = unsuppressed(boxes, scores, labels, nms_iou, suppression).numpy()
        correct, duplicate = _assign(overlap[kept], between[np.ix_(kept, kept)])
        counted = correct | ~covered[kept]
        kept = kept[counted]
        yield _Matched(image.scores[kept], image.labels[kept], correct[counted], duplicate[counted])


def _assign(overlap: Floats, between: Floats) -> tuple[Flags, Flags]:
    """Return which detections are on an object that no better one is on, and which are duplicates.

    Args:
        overlap: [n, T], IoU with the objects of the same class, n by falling score.
        between: [n, n], IoU of the detections.
    """
    target = match(overlap)
    duplicate = np.zeros(len(overlap), dtype=np.bool_)
    if not overlap.size:
        return target >= 0, duplicate
    owner = np.full(overlap.shape[1], -1)
    owner[target[target >= 0]] = np.flatnonzero(target >= 0)
    # The better detection that is on the object that this one fits best.
    better = np.where(overlap.max(axis=1) > 0, owner[overlap.argmax(axis=1)], -1)
    rivals = np.flatnonzero((better >= 0) & (better < np.arange(len(overlap))))
    duplicate[rivals] = between[rivals, better[rivals]] >= SUPPRESSION_IOU
    return target >= 0, duplicate


def usage_lines(metrics: CocoMetrics) -> list[str]:
    """Return what an evaluation says about the use of the detector, for a reader; nothing if it was not asked."""
    usage = metrics.usage
    if usage is None or usage.suppressed_precision < 0:
        return []
    point, rate = usage.point, usage.duplicate_rate
    twice = "" if rate is None else f"  duplicate rate {100 * rate:.1f} %"
    used = describe_suppression(point.nms_iou)
    lines = [
        f"AP with suppression {usage.suppressed_precision:.3f}{twice}",
        f"operating point: score {point.score:.2f}, {used} (F1 {point.f1:.3f}); predict uses it",
    ]
    if usage.few:
        lines.append(f"fewer than {MIN_OBJECTS} objects, so the overall score counts: {listed(usage.few)}")
    gain = usage.suppressed_precision - metrics.values["AP"]
    if gain > NOTABLE_GAIN:
        how = "predict with --nms" if point.nms_iou is None else "keep the suppression that predict uses"
        lines.append(f"suppression gains {100 * gain:.1f} AP, since objects are found twice: train longer, or {how}")
    return lines
