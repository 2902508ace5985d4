"""The score of best F1, whether suppression pays, and the duplicate rate: on images small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_detr.data.coco.categories import UNUSED, CategoryMap
from lora_detr.data.coco.split import CocoSplit, load_coco
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator, Usage
from lora_detr.evaluation.matching import FLOOR
from lora_detr.evaluation.operating_point import MIN_OBJECTS, choose_usage
from lora_detr.structures import Detections

Found = tuple[float, float, int]
"""Left edge of a box 40 wide and 40 high at the top, its score and label."""


def make_split(folder: Path, objects: list[tuple[int, float, int, bool]], images: int = 2) -> CocoSplit:
    """Return a split; an object is (image, left edge, label, crowd)."""
    rows = [
        {"id": i, "image_id": image, "category_id": label, "bbox": [x, 0, 40, 40], "area": 1600, "iscrowd": int(crowd)}
        for i, (image, x, label, crowd) in enumerate(objects)
    ]
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 4000, "height": 100} for i in range(images)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": rows,
    }
    path = folder / "val.json"
    path.write_text(json.dumps(content))
    return load_coco(path, folder, check_files=False)


def evaluator_of(split: CocoSplit, found: dict[int, list[Found]]) -> CocoEvaluator:
    evaluator = CocoEvaluator(split)
    for image, entries in found.items():
        ordered = sorted(entries, key=lambda entry: -entry[1])
        boxes = torch.tensor([[x, 0.0, x + 40, 40.0] for x, _, _ in ordered], dtype=torch.float64).reshape(-1, 4)
        scores = torch.tensor([score for _, score, _ in ordered], dtype=torch.float64)
        labels = torch.tensor([label for _, _, label in ordered], dtype=torch.int64)
        evaluator.add(image, Detections(boxes, scores, labels, torch.arange(len(ordered))))
    return evaluator


def usage_of(split: CocoSplit, found: dict[int, list[Found]], suppression: str = "per-class") -> Usage:
    return choose_usage(evaluator_of(split, found), split.categories, suppression)  # type: ignore[arg-type]


def test_score_is_between_the_last_detection_that_pays_and_the_next(tmp_path: Path) -> None:
    """Three objects: right at 0.9 and 0.7, wrong at 0.5, right at 0.4, wrong at 0.3: F1 4/5, then 4/6, then 6/7."""
    split = make_split(tmp_path, [(0, 0, 0, False), (0, 100, 0, False), (1, 0, 0, False)])
    found: dict[int, list[Found]] = {0: [(0, 0.9, 0), (100, 0.7, 0), (300, 0.5, 0)], 1: [(0, 0.4, 0), (300, 0.3, 0)]}
    point = usage_of(split, found).point
    assert point.score == pytest.approx(0.35)
    assert point.f1 == pytest.approx(6 / 7)
    assert point.nms_iou is None


def test_a_threshold_does_not_part_equal_scores(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, 0, False)])
    found: dict[int, list[Found]] = {0: [(0, 0.6, 0), (100, 0.6, 0), (200, 0.2, 0)]}
    point = usage_of(split, found).point
    assert point.score == pytest.approx(0.4)
    assert point.f1 == pytest.approx(2 / 3)


def test_a_detection_finds_one_object_and_only_of_its_class(tmp_path: Path) -> None:
    """The second detection of the object and the one of the other class are wrong."""
    split = make_split(tmp_path, [(0, 0, 0, False)])
    found: dict[int, list[Found]] = {0: [(0, 0.9, 0), (15, 0.8, 0), (0, 0.7, 1)]}
    point = usage_of(split, found).point
    assert point.f1 == pytest.approx(1.0)
    assert point.score == pytest.approx(0.85)


def test_duplicates_are_counted_above_the_score_only(tmp_path: Path) -> None:
    """Boxes 40 wide: shifted by 4 they overlap by 36/44, by 12 only by 28/52.

    Right at 0.9, 0.8 and 0.6; a duplicate at 0.7 above the score of best F1 and one at 0.2 below it; a detection that
    overlaps too little for a duplicate at 0.65.
    """
    split = make_split(tmp_path, [(0, 0, 0, False), (0, 100, 0, False), (1, 0, 0, False), (1, 200, 0, False)])
    found: dict[int, list[Found]] = {
        0: [(0, 0.9, 0), (4, 0.7, 0), (12, 0.65, 0), (100, 0.8, 0)],
        1: [(0, 0.6, 0), (200, 0.59, 0), (4, 0.2, 0)],
    }
    assert usage_of(split, found).duplicate_rate == pytest.approx(1 / 6)


def test_neighbours_that_overlap_are_no_duplicates(tmp_path: Path) -> None:
    """Two real objects overlap by 36/44: each of the two detections is on its own."""
    split = make_split(tmp_path, [(0, 0, 0, False), (0, 4, 0, False)])
    usage = usage_of(split, {0: [(0, 0.9, 0), (4, 0.8, 0)]})
    assert usage.duplicate_rate == 0
    assert usage.point.f1 == 1
    assert usage.point.nms_iou is None  # which would lose one of them


def test_suppression_is_chosen_where_it_pays(tmp_path: Path) -> None:
    """Every object is found twice, the second time better than another object the first time."""
    split = make_split(tmp_path, [(0, 100 * i, 0, False) for i in range(4)])
    doubled: list[Found] = [
        entry for i in range(4) for entry in ((100 * i, 0.9 - i / 10, 0), (100 * i + 4, 0.89 - i / 10, 0))
    ]
    usage = usage_of(split, {0: doubled})
    assert usage.duplicate_rate == pytest.approx(3 / 7)  # the last duplicate is below the score of best F1
    assert usage.point.nms_iou in (0.5, 0.6, 0.7, 0.8)
    assert usage.point.f1 == 1


def test_suppression_of_any_class_is_tried_where_the_detector_says_so(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 100 * i, 0, False) for i in range(4)])
    doubled: list[Found] = [
        entry for i in range(4) for entry in ((100 * i, 0.9 - i / 10, 0), (100 * i, 0.89 - i / 10, 1))
    ]
    assert usage_of(split, {0: doubled}, "per-class").point.nms_iou is None
    assert usage_of(split, {0: doubled}, "any-class").point.nms_iou is not None


def test_a_class_with_few_objects_takes_the_overall_score(tmp_path: Path) -> None:
    many = [(0, 100.0 * i, 0, False) for i in range(MIN_OBJECTS)]
    few = [(1, 100.0 * i, 1, False) for i in range(MIN_OBJECTS - 1)]
    found: dict[int, list[Found]] = {
        0: [(x, 0.8, 0) for _, x, _, _ in many],
        1: [(x, 0.3, 1) for _, x, _, _ in few],
    }
    usage = usage_of(make_split(tmp_path, [*many, *few]), found)
    assert usage.few == ("dog",)
    assert usage.point.class_scores[1] is None
    own = usage.point.class_scores[0]
    assert own is not None and own == pytest.approx((0.8 + FLOOR) / 2)
    assert usage.point.score == pytest.approx((0.3 + FLOOR) / 2)


def test_crowd_regions_neither_count_nor_punish(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, 0, False), (0, 200, 0, True)])
    usage = usage_of(split, {0: [(0, 0.5, 0), (200, 0.9, 0), (204, 0.8, 0)]})
    assert usage.few == ("cat",)
    assert usage.point.f1 == 1
    assert usage.duplicate_rate == 0


@pytest.mark.parametrize("objects", [[], [(0, 0.0, 0, False)]])
def test_nothing_found_or_nothing_there(tmp_path: Path, objects: list[tuple[int, float, int, bool]]) -> None:
    usage = usage_of(make_split(tmp_path, objects), {0: []})
    assert usage.duplicate_rate is None
    assert (usage.point.score, usage.point.f1, usage.point.nms_iou) == (FLOOR, 0, None)


def test_labels_that_stand_for_nothing_are_left_out(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, 0, False)])
    split = split.with_categories(CategoryMap((0, 1, 2), ("cat", "dog", UNUSED)))
    assert usage_of(split, {0: [(0, 0.5, 0), (100, 0.9, 2)]}).point.f1 == 1


def test_images_without_results_count_their_objects(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, 0, False), (1, 0, 0, False)])
    assert usage_of(split, {0: [(0, 0.9, 0)]}).point.f1 == pytest.approx(2 / 3)


def test_the_rate_is_of_the_overlap_that_suppression_uses() -> None:
    assert SUPPRESSION_IOU == 0.7
