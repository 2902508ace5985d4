"""Images that cannot be read are in no number of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_detr.data.coco.report import Problem
from lora_detr.errors import DataError
from lora_detr.evaluation.coco_eval import CocoEvaluator
from lora_detr.structures import Detections
from tests.unit.data.coco.coco_files import content, load

PROBLEM = Problem("D18", "0.png (image id 10): the image cannot be read")


def _found(label: int) -> Detections:
    boxes = torch.tensor([[2.0, 3, 12, 15]])
    return Detections(boxes, torch.tensor([0.9]), torch.tensor([label]), torch.tensor([0]))


def _evaluator(folder: Path) -> CocoEvaluator:
    evaluator = CocoEvaluator(load(folder, content(3)))
    for i in range(3):
        evaluator.add(10 + i, _found(i % 2))
    return evaluator


def test_neither_its_objects_nor_what_was_found_on_it_count_d18(tmp_path: Path) -> None:
    whole, part = _evaluator(tmp_path), _evaluator(tmp_path)
    part.leave_out({10: PROBLEM})
    assert [entry["image_id"] for entry in part.predictions()] == [11, 12]
    metrics = part.compute()
    assert metrics.values["AP"] == pytest.approx(1.0)
    assert [row.objects for row in metrics.per_class] == [1, 1]
    assert [row.objects for row in whole.compute().per_class] == [2, 1]
    assert (metrics.left_out, metrics.to_json()["left_out"]) == (1, 1)
    assert "left_out" not in whole.compute().to_json()
    missed = CocoEvaluator(load(tmp_path, content(3)))
    missed.add(11, _found(1))
    missed.add(12, _found(0))
    assert missed.compute().values["AP"] < 1  # an image with nothing found on it does count


def test_leaving_out_nothing_changes_nothing(tmp_path: Path) -> None:
    evaluator = _evaluator(tmp_path)
    evaluator.leave_out({})
    assert evaluator.compute() == _evaluator(tmp_path).compute()


def test_nothing_is_left_d18(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 images can be read; the first: 0\.png \(image id 10\)"):
        _evaluator(tmp_path).leave_out(dict.fromkeys((10, 11, 12), PROBLEM))
