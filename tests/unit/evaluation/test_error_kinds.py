"""Kinds of errors and the confusion matrix, on images small enough to count by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_detr.data.coco.split import CocoSplit
from lora_detr.errors import ConfigError
from lora_detr.evaluation.coco_eval import CocoEvaluator
from lora_detr.evaluation.confusion import Confusion, check_suffix, confusion_of, write_confusion
from lora_detr.evaluation.error_kinds import ERRORS, Kind
from lora_detr.evaluation.operating_point import choose_usage
from lora_detr.recipe.preparation import OperatingPoint
from lora_detr.structures import Detections
from tests.unit.evaluation.test_operating_point import Found, evaluator_of, make_split

CAT, DOG = 0, 1
POINT = OperatingPoint(score=0.5, class_scores=(None, 0.4), nms_iou=None, f1=0.0)


def judged(split: CocoSplit, found: dict[int, list[Found]], point: OperatingPoint = POINT) -> Confusion:
    return confusion_of(evaluator_of(split, found), point, split.categories, "per-class")


@pytest.fixture
def example(tmp_path: Path) -> Confusion:
    """Two images. Boxes are 40 wide, so a shift by d has IoU (40 - d) / (40 + d): 10 gives 0.6, 20 gives 1/3.

    First image, objects: cats at 0, 100 and 600, dogs at 200 and 300; a crowd of cats at 1000.

    - cat 0.95 at 0: right; cat 0.9 at 10: double (0.6 with the cat at 0, which is taken)
    - cat 0.85 at 120: poorly placed (1/3 with the cat at 100)
    - cat 0.8 at 200: wrong class (on a dog), and cat 0.75 at 205: also wrong class, on the same dog
    - dog 0.45 at 300: right, since 0.4 is enough for a dog; cat 0.45 at 600: below 0.5, so it does not count
    - cat 0.7 at 1000 and at 1005: ignored (on the crowd region); dog 0.7 at 1000: background (the crowd is of cats)
    - dog 0.65 at 2000: background

    The cat at 600 is missed: no detection that counts is near it. The cat at 100 is not missed but poorly placed, and
    the dog at 200 is found as a cat.

    Second image, objects: a dog at 0. Nothing is found, so it is missed.
    """
    objects = [(0, 0.0, CAT, False), (0, 100, CAT, False), (0, 600, CAT, False), (0, 200, DOG, False)]
    objects += [(0, 300, DOG, False), (0, 1000, CAT, True), (1, 0, DOG, False)]
    cats = [(0, 0.95), (10, 0.9), (120, 0.85), (200, 0.8), (205, 0.75), (600, 0.45), (1000, 0.7), (1005, 0.69)]
    dogs = [(300, 0.45), (1000, 0.7), (2000, 0.65)]
    found = [*((float(x), score, CAT) for x, score in cats), *((float(x), score, DOG) for x, score in dogs)]
    return judged(make_split(tmp_path, objects), {0: found})


def test_every_detection_and_object_gets_the_kind_that_was_worked_out(example: Confusion) -> None:
    errors = example.errors
    # Cats: the double, two of the wrong class, the poorly placed one, no background; one missed.
    assert errors.counts(CAT) == dict(zip(ERRORS, (1, 2, 1, 0, 1), strict=True))
    # Dogs: two on the background; the one of the second image is missed.
    assert errors.counts(DOG) == dict(zip(ERRORS, (0, 0, 0, 2, 1), strict=True))
    assert errors.counts() == dict(zip(ERRORS, (1, 2, 1, 2, 2), strict=True))
    assert (errors.right(CAT), errors.right(DOG), errors.right(), errors.ignored()) == (1, 1, 2, 2)
    assert errors.objects.tolist() == [3, 3]
    # 2 right of 2 + 1 + 2 + 1 + 2 detections, and of 6 objects.
    assert errors.precision() == pytest.approx(2 / 8)
    assert errors.recall() == pytest.approx(2 / 6)
    assert errors.precision(DOG) == pytest.approx(1 / 3)


def test_confusion_matrix_is_the_one_that_was_worked_out(example: Confusion) -> None:
    # Rows: cat, dog, background; columns: found as cat, as dog, as nothing.
    # Three cats: one found, two (at 100 and 600) as nothing, since IoU 1/3 is not enough.
    # Three dogs: one found as a cat, one as a dog, one as nothing.
    # On no object of their own: cats at 10, 120 and 205 (its dog is taken); dogs at 1000 and 2000.
    assert example.matrix.tolist() == [[1, 0, 2], [1, 1, 1], [3, 2, 0]]


def test_rows_sum_to_objects_and_columns_to_detections(example: Confusion) -> None:
    assert example.matrix.sum(axis=1)[:-1].tolist() == example.errors.objects.tolist()
    detections = example.errors.detections.sum(axis=1) - example.errors.detections[:, Kind.IGNORED]
    assert example.matrix.sum(axis=0)[:-1].tolist() == detections.tolist()
    assert np.diag(example.matrix)[:-1].tolist() == [example.errors.right(CAT), example.errors.right(DOG)]


def test_of_an_image_the_errors_and_f1_are_counted(example: Confusion) -> None:
    first, second = example.images
    assert (first.objects, first.right, first.errors) == (5, 2, 1 + 2 + 1 + 2 + 1)
    assert first.f1 == pytest.approx(2 * 2 / (8 + 5))
    assert (second.objects, second.right, second.errors, second.f1) == (1, 0, 1, 0.0)


def test_the_thresholds_themselves_belong_to_the_higher_kind(tmp_path: Path) -> None:
    """IoU is 0.5 for a shift by 40/3, computed a little above or below; so boxes of other widths decide it exactly.

    An object [0, 40]; [0, 20] has IoU 20/40 = 0.5 and is right; [0, 4] has 4/40 = 0.1 and is poorly placed; [0, 3.9]
    is background.
    """
    split = make_split(tmp_path, [(0, 0, CAT, False), (1, 0, CAT, False)])
    for width, kind in ((20.0, Kind.RIGHT), (4.0, Kind.POORLY_PLACED), (3.9, Kind.BACKGROUND)):
        evaluator = CocoEvaluator(split)
        box = torch.tensor([[0.0, 0.0, width, 40.0]], dtype=torch.float64)
        evaluator.add(0, Detections(box, torch.tensor([0.5]), torch.tensor([CAT]), torch.tensor([0])))
        (first, _) = confusion_of(evaluator, POINT, split.categories, "per-class").images
        assert first.kinds.tolist() == [kind], width


def test_a_second_of_a_pair_of_objects_is_found_by_a_detection_that_the_first_one_could_have(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, CAT, False), (0, 10, CAT, False)])
    confusion = judged(split, {0: [(0, 0.9, CAT), (5, 0.8, CAT)]})
    assert confusion.errors.right() == 2


def test_suppression_of_the_operating_point_removes_the_double(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, CAT, False)])
    found: dict[int, list[Found]] = {0: [(0, 0.9, CAT), (5, 0.8, CAT)]}  # IoU 35/45 = 0.78
    assert judged(split, found).errors.counts()["double"] == 1
    assert judged(split, found, POINT.model_copy(update={"nms_iou": 0.7})).errors.counts()["double"] == 0


def test_f1_is_that_of_the_chosen_operating_point(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    objects = [(image, 50.0 * i, int(generator.integers(2)), i == 9) for image in range(2) for i in range(10)]
    found: dict[int, list[Found]] = {
        image: [
            (float(generator.integers(0, 500)), float(generator.uniform(0.05, 1)), int(generator.integers(2)))
            for _ in range(60)
        ]
        for image in range(2)
    }
    evaluator = evaluator_of(split := make_split(tmp_path, objects), found)
    point = choose_usage(evaluator, split.categories, "per-class").point
    errors = confusion_of(evaluator, point, split.categories, "per-class").errors
    shown = errors.right() + sum(errors.counts().values()) - errors.counts()["missed"]
    assert 2 * errors.right() / (shown + int(errors.objects.sum())) == pytest.approx(point.f1)


def test_nothing_found_and_nothing_to_find(tmp_path: Path) -> None:
    confusion = judged(make_split(tmp_path, []), {})
    assert confusion.matrix.tolist() == [[0, 0, 0]] * 3
    assert [image.f1 for image in confusion.images] == [None, None]
    assert (confusion.errors.precision(), confusion.errors.recall(DOG)) == (None, None)


def test_file_is_json_or_csv_by_its_suffix(example: Confusion, tmp_path: Path) -> None:
    write_confusion(tmp_path / "c.json", example)
    content = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert content["classes"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}, "background"]
    assert content["matrix"] == example.matrix.tolist()
    assert content["error_kinds"] == {"objects": 6, "right": 2, **example.errors.counts()}
    assert (content["match_iou"], content["near_iou"], content["ignored"]) == (0.5, 0.1, 2)
    write_confusion(tmp_path / "c.csv", example)
    head, *rows = csv.reader(io.StringIO((tmp_path / "c.csv").read_text(encoding="utf-8")))
    found = ["found as cat", "found as dog", "found as background"]
    assert head == ["category_id", "name", *found, "objects", "right", *ERRORS]
    assert rows[0] == ["0", "cat", "1", "0", "2", "3", "1", "1", "2", "1", "0", "1"]
    assert rows[2][:5] == ["", "background", "3", "2", "0"]


def test_another_suffix_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\.json or \.csv"):
        check_suffix(Path("c.txt"))
