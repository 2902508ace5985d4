"""How far what two detectors find in the same images differs, after their detections are matched to each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from lora_detr.evaluation.predictor import ImagePrediction

BEST = 50
"""Detections of an image that are compared, best first: the last ones of hundreds have hardly a score."""
MATCH_IOU = 0.5
# More than any pair of one class costs.
_NEVER = 1e6


@dataclass(frozen=True)
class Difference:
    """Largest differences over some images.

    Attributes:
        size: height and width of the input, or what stands for it.
        batch: images of a forward pass.
        images: compared.
        detections: compared.
        score: largest difference of the scores of two detections that were matched.
        box: largest difference of their coordinates in pixels.
        relative_box: the same as a share of the longer side of the image.
        unmatched: detections without a counterpart of the same class that overlaps by half.
    """

    size: str
    batch: int
    images: int
    detections: int
    score: float
    box: float
    relative_box: float
    unmatched: int

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def compare(
    size: str, batch: int, pairs: Iterable[tuple[ImagePrediction, ImagePrediction]], slack: float
) -> Difference:
    """Match the best detections of each pair and return how far they differ.

    Args:
        size: see ``Difference``.
        batch: see ``Difference``.
        pairs: what is expected and what was found, of each image.
        slack: a detection without a counterpart does not count where its score is that near to the last one kept.
    """
    images = detections = unmatched = 0
    score = box = relative = 0.0
    for expected, found in pairs:
        images += 1
        count = min(BEST, len(expected))
        detections += count
        rows, columns = _matched(expected, found)
        matched = set(rows)
        last = float(expected.scores[-1]) if len(expected) else 0.0
        for row in range(count):
            if row not in matched and float(expected.scores[row]) > last + slack:
                unmatched += 1
        if rows:
            apart = (expected.boxes_xyxy_pixels[rows] - found.boxes_xyxy_pixels[columns]).abs().max().item()
            score = max(score, (expected.scores[rows] - found.scores[columns]).abs().max().item())
            box, relative = max(box, apart), max(relative, apart / max(expected.size))
    return Difference(size, batch, images, detections, score, box, relative, unmatched)


def _matched(expected: ImagePrediction, found: ImagePrediction) -> tuple[list[int], list[int]]:
    """Return the places of matched detections: of one class, overlapping, as alike as they can be together."""
    wanted = slice(0, BEST)
    overlap = box_iou(expected.boxes_xyxy_pixels[wanted], found.boxes_xyxy_pixels)
    same = (expected.labels[wanted, None] == found.labels) & (overlap >= MATCH_IOU)
    apart = (expected.scores[wanted, None] - found.scores).abs()
    cost = torch.where(same, 1 - overlap + apart, _NEVER).double().numpy()
    rows, columns = linear_sum_assignment(cost)
    kept = [(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if same[row, column]]
    return [row for row, _ in kept], [column for _, column in kept]
