"""Objects that are too many or too small for a detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.quality.detector_limits import SMALL, DetectorLimits, limit_findings, shorter_sides
from lora_detr.data.transforms import EvalTransformConfig
from tests.unit.data.coco.coco_files import content, load

LIMITS = DetectorLimits(300, "model.num_queries", 100, EvalTransformConfig())


def split_of(folder: Path, boxes: list[list[float]], width: int = 1000, height: int = 800) -> CocoSplit:
    """Return a split of one image with some boxes."""
    value: dict[str, Any] = content(1, width, height)
    (row,) = value["annotations"]
    value["annotations"] = [{**row, "id": i, "bbox": box} for i, box in enumerate(boxes, start=1)]
    return load(folder, value)


def grid(count: int, side: float) -> list[list[float]]:
    return [[(i % 90) * 10.0, (i // 90) * 10.0, side, side] for i in range(count)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (100, []),
        (
            101,
            [("Q10", "than the 100 detections that are kept (at most 101): 1 object cannot")],
        ),
        (305, [("Q09", "305): 5 objects of an epoch go unmatched"), ("Q10", "(at most 305): 205 objects cannot")]),
    ],
)
def test_more_objects_than_a_detector_finds(tmp_path: Path, count: int, expected: list[tuple[str, str]]) -> None:
    found = limit_findings([split_of(tmp_path, grid(count, 9.0))], LIMITS)
    assert [finding.id for finding in found] == [code for code, _ in expected]
    for finding, (_, text) in zip(found, expected, strict=True):
        assert text in finding.text
        assert finding.places == (f"0.png (image id 10): {count} objects",)


def test_detections_are_no_finding_of_their_own_if_queries_are_fewer(tmp_path: Path) -> None:
    limits = replace(LIMITS, queries=6, queries_key="model.queries")
    (found,) = limit_findings([split_of(tmp_path, grid(150, 9.0))], limits)
    assert found.id == "Q09"
    assert found.remedy == "--set model.queries=N raises them"
    split = split_of(tmp_path, grid(7, 9.0))
    of_train, of_val = limit_findings([split, split], limits)
    assert of_train.text.endswith("1 object of an epoch goes unmatched")
    assert of_val.text.endswith("1 object cannot be found")


@pytest.mark.parametrize(
    ("prepared", "expected"),
    [
        (EvalTransformConfig(size=800, max_size=1333), 10.0),  # as it is
        (EvalTransformConfig(size=400, max_size=1333), 5.0),
        (EvalTransformConfig(size=800, max_size=500), 5.0),  # the longer side decides
        (EvalTransformConfig(size=1600, max_size=None), 20.0),
        (EvalTransformConfig(size=500, square=True), 5.0),  # 1000 x 800 to 500 x 500: the width halves
    ],
)
def test_sides_are_those_after_resizing(tmp_path: Path, prepared: EvalTransformConfig, expected: float) -> None:
    split = split_of(tmp_path, [[0, 0, 10, 30]])
    assert shorter_sides(split, replace(LIMITS, prepared=prepared)).tolist() == pytest.approx([expected])


def test_tiles_enlarge_objects(tmp_path: Path) -> None:
    split = split_of(tmp_path, [[0, 0, 10, 30]])
    assert shorter_sides(split, replace(LIMITS, tiles=200)).tolist() == pytest.approx([40.0])


def test_small_objects_are_counted_with_what_would_help(tmp_path: Path) -> None:
    boxes = [[0, 0, 5, 40]] * 10 + [[100, 100, 60, 50]] * 90
    split = split_of(tmp_path, [[x + 60 * (i % 14), y + 7 * (i // 14), *size] for i, (x, y, *size) in enumerate(boxes)])
    (found,) = limit_findings([split], LIMITS)
    assert (found.id, found.severity, found.count) == ("Q11", "warning", 10)
    assert found.text == (
        "train.json: 10% of 100 objects (10) are less than 8 pixels wide or high at the input size of 800 "
        "(shorter side)"
    )
    # 5 pixels become 8 at 1280; of a tile of 500 pixels, 5 become 8 at 800.
    assert "an input size of 1280 leaves at most 5%" in found.remedy
    assert "--set data.evaluation.max_size=2133" in found.remedy
    assert "--set data.train.tiles=480" in found.remedy
    for helped in (
        replace(LIMITS, prepared=EvalTransformConfig(size=1280, max_size=2133)),
        replace(LIMITS, tiles=480),
    ):
        assert limit_findings([split], helped) == []


def test_the_size_that_is_named_leaves_few_small_objects(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sides = random.uniform(2, 40, (400, 2))
    split = split_of(tmp_path, [[10.0, 10.0, width, height] for width, height in sides.tolist()])
    limits = replace(LIMITS, queries=1000, detections=1000, prepared=EvalTransformConfig(size=320, square=True))
    (found,) = limit_findings([split], limits)
    assert found.count == int((shorter_sides(split, limits) < SMALL).sum())
    size = int(found.remedy.split("an input size of ")[1].split()[0])
    assert size % 32 == 0
    share = [
        (shorter_sides(split, replace(limits, prepared=EvalTransformConfig(size=each, square=True))) < SMALL).mean()
        for each in (size, size - 32)
    ]
    assert share[0] <= 0.05 < share[1]


def test_few_small_objects_are_no_finding(tmp_path: Path) -> None:
    split = split_of(tmp_path, [[0, 0, 5, 40]] + [[10.0 * i, 100, 60, 50] for i in range(30)])
    assert limit_findings([split], LIMITS) == []
    assert limit_findings([], LIMITS) == []
