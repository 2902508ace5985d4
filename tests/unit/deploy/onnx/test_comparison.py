"""Detections are matched before they are compared, and what has no counterpart is counted."""

from __future__ import annotations

import numpy as np
import torch

from lora_detr.deploy.onnx.comparison import BEST, Difference, compare
from lora_detr.evaluation.predictor import ImagePrediction

BOXES = [[0.0, 0.0, 20.0, 20.0], [30.0, 0.0, 60.0, 30.0], [50.0, 50.0, 90.0, 90.0]]
SCORES = [0.9, 0.5, 0.2]


def prediction(boxes: list[list[float]], scores: list[float], labels: list[int]) -> ImagePrediction:
    names = tuple(str(label) for label in labels)
    size = (100, 200)
    return ImagePrediction(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        tuple(labels),
        names,
        size,
        np.zeros((*size, 3), np.uint8),
    )


def difference(expected: ImagePrediction, found: ImagePrediction, slack: float = 0.0) -> Difference:
    return compare("96", 1, [(expected, found)], slack)


def test_the_order_of_detections_does_not_matter() -> None:
    turned = prediction(BOXES[::-1], SCORES[::-1], [2, 1, 0])
    one = difference(prediction(BOXES, SCORES, [0, 1, 2]), turned)
    assert (one.score, one.box, one.unmatched, one.detections) == (0.0, 0.0, 0, 3)


def test_differences_are_the_largest_of_matched_pairs() -> None:
    moved = [[x + 2.0 * (i == 1) for x in box] for i, box in enumerate(BOXES)]
    one = difference(prediction(BOXES, SCORES, [0, 1, 2]), prediction(moved, [0.9, 0.5, 0.25], [0, 1, 2]))
    assert round(one.score, 6) == 0.05
    assert (one.box, one.relative_box, one.unmatched) == (2.0, 0.01, 0)


def test_of_two_boxes_at_one_place_the_one_of_like_score_is_the_counterpart() -> None:
    double = prediction([BOXES[0], BOXES[0]], [0.9, 0.4], [0, 0])
    turned = prediction([BOXES[0], BOXES[0]], [0.4, 0.9], [0, 0])
    assert difference(double, turned).score == 0.0


def test_another_class_or_place_is_no_counterpart() -> None:
    expected = prediction(BOXES, SCORES, [0, 1, 2])
    assert difference(expected, prediction(BOXES, SCORES, [0, 1, 1])).unmatched == 0  # the last one kept
    assert difference(expected, prediction(BOXES, SCORES, [0, 2, 2])).unmatched == 1
    far = [BOXES[0], [100.0, 0.0, 130.0, 30.0], BOXES[2]]
    assert difference(expected, prediction(far, SCORES, [0, 1, 2])).unmatched == 1


def test_nothing_found_leaves_all_unmatched_but_the_last() -> None:
    one = difference(prediction(BOXES, SCORES, [0, 1, 2]), prediction([], [], []), slack=0.01)
    assert (one.detections, one.unmatched) == (3, 2)


def test_the_best_detections_are_compared() -> None:
    many = [[float(i), 0.0, i + 10.0, 10.0] for i in range(BEST + 30)]
    scores = [1 - i / 1000 for i in range(BEST + 30)]
    assert difference(prediction(many, scores, [0] * (BEST + 30)), prediction([], [], [])).detections == BEST
