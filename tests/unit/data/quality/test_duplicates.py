"""Objects that are annotated twice."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from lora_detr.data.quality.duplicates import SAME_IOU, duplicate_finding, repeated_boxes
from tests.unit.data.coco.coco_files import content, load


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common / (sum(areas) - common)


def repeats_by_hand(images: list[int], classes: list[int], boxes: list[list[float]]) -> list[int]:
    """Compare every box with all earlier ones that stay."""
    found: list[int] = []
    for j in range(len(boxes)):
        for i in range(j):
            same = (images[i], classes[i]) == (images[j], classes[j])
            if same and i not in found and iou(boxes[i], boxes[j]) >= SAME_IOU:
                found.append(j)
                break
    return found


def test_boxes_that_repeat_others_are_those_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    count = 300
    images, classes = random.integers(0, 3, count), random.integers(0, 2, count)
    corners = random.integers(0, 3, (count, 2)) * 50.0
    boxes = np.concatenate((corners, corners + 100), axis=1) + random.integers(0, 3, (count, 4)) * 1.3
    expected = repeats_by_hand(images.tolist(), classes.tolist(), boxes.tolist())
    assert repeated_boxes(images, classes, boxes).tolist() == expected
    assert 30 < len(expected) < 270


def test_of_a_chain_only_what_repeats_a_box_that_stays_is_found() -> None:
    boxes = np.array([[0, 0, 100, 100], [0, 0, 104, 100], [0, 0, 108, 100]], dtype=np.float64)
    one = np.zeros(3, dtype=np.int64)
    assert repeated_boxes(one, one, boxes).tolist() == [1]


def test_no_boxes_and_boxes_without_area_repeat_nothing() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert repeated_boxes(none, none, np.zeros((0, 4))).tolist() == []
    two = np.zeros(2, dtype=np.int64)
    assert repeated_boxes(two, two, np.array([[5.0, 5.0, 5.0, 9.0]] * 2)).tolist() == []


def test_a_million_boxes_take_a_second() -> None:
    random = np.random.default_rng(0)
    count = 1_000_000
    corners = random.uniform(0, 400, (count, 2))
    boxes = np.concatenate((corners, corners + random.uniform(10, 200, (count, 2))), axis=1)
    started = time.process_time()
    repeated_boxes(np.arange(count) // 10, random.integers(0, 80, count), boxes)
    assert time.process_time() - started < 5


def test_a_finding_has_number_and_places(tmp_path: Path) -> None:
    value = content(3)
    assert duplicate_finding(load(tmp_path, value)) == []
    row = value["annotations"][1]
    value["annotations"] += [{**row, "id": 900}, {**row, "id": 901, "category_id": 1}]  # the second: another class
    (found,) = duplicate_finding(load(tmp_path, value))
    assert (found.id, found.severity, found.count) == ("Q04", "warning", 1)
    assert found.text == "train.json: 1 object repeats another of its class and image (IoU at least 0.95)"
    assert found.places == ("1.png (image id 11): plate at x, y, width, height 2, 3, 10, 12",)
    value["annotations"] += [{**row, "id": 1000 + i} for i in range(14)]
    (found,) = duplicate_finding(load(tmp_path, value))
    assert (found.count, len(found.places)) == (15, 10)
