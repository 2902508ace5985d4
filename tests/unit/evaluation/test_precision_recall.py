"""AP of classes and sizes, and precision by recall, agree with COCO's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_detr.data.coco.split import CocoSplit
from lora_detr.evaluation.coco_eval import CocoEvaluator
from lora_detr.evaluation.precision_recall import PrecisionTable, precision_table
from tests.unit.evaluation.test_error_kinds import evaluator_of
from tests.unit.evaluation.test_operating_point import Found, make_split


@pytest.fixture
def measured(tmp_path: Path) -> tuple[CocoEvaluator, PrecisionTable, CocoSplit]:
    """Two cats, of which one is found, and a dog that is found behind a wrong one."""
    split = make_split(tmp_path, [(0, 0, 0, False), (0, 100, 0, False), (1, 0, 1, False), (1, 500, 0, True)])
    found: dict[int, list[Found]] = {0: [(0, 0.9, 0), (300, 0.8, 1)], 1: [(0, 0.6, 1)]}
    evaluator = evaluator_of(split, found)
    return evaluator, precision_table(evaluator), split


def test_ap_of_classes_averages_to_ap(measured: tuple[CocoEvaluator, PrecisionTable, CocoSplit]) -> None:
    evaluator, table, _ = measured
    values = evaluator.compute().values
    each = [table.average(place) for place in range(len(table.names))]
    # The found cat covers recalls up to 0.5 with precision 1: 51 of 101 points. The dog comes second: 1/2 everywhere.
    assert each == pytest.approx([51 / 101, 0.5])
    assert np.mean([value for value in each if value is not None]) == pytest.approx(values["AP"])
    assert table.average() == pytest.approx(values["AP"])
    assert table.average(iou=0) == pytest.approx(values["AP50"])
    # 40 x 40 pixels is medium.
    assert table.average(area=2) == pytest.approx(values["APm"])
    assert table.average(area=1) is None
    assert values["APs"] == -1


def test_objects_are_counted_by_size_without_crowd_regions(
    measured: tuple[CocoEvaluator, PrecisionTable, CocoSplit],
) -> None:
    assert measured[1].objects.tolist() == [[2, 0, 2, 0], [1, 0, 1, 0]]


def test_curves_are_precision_by_recall(measured: tuple[CocoEvaluator, PrecisionTable, CocoSplit]) -> None:
    _, table, _ = measured
    cats, all_classes = table.curve(0, 0), table.curve(0)
    assert cats is not None
    assert all_classes is not None
    assert cats.tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert all_classes.tolist() == pytest.approx([0.75] * 51 + [0.25] * 50)


def test_a_class_without_objects_has_no_curve_and_leaves_the_mean_alone(tmp_path: Path) -> None:
    split = make_split(tmp_path, [(0, 0, 0, False)])
    table = precision_table(evaluator_of(split, {0: [(0, 0.9, 0), (300, 0.8, 1)]}))
    assert table.average(1) is None
    assert table.curve(0, 1) is None
    assert table.average() == pytest.approx(1.0)
    nothing = precision_table(evaluator_of(make_split(tmp_path, []), {}))
    assert nothing.curve(0) is None
    assert nothing.average() is None
