"""Classes that are absent, rare, or in one split only, and what was changed while a file was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.data.coco.audit import audit
from lora_detr.data.coco.plausibility import absent_classes, imbalance
from lora_detr.data.quality.finding import PLACES, Finding, warnings_of
from tests.unit.data.coco.coco_files import content, load, write, write_images


def test_classes_that_no_split_has() -> None:
    (found,) = absent_classes("train.json", [("cat", 3), ("dog", 0), ("cow", 0)], [0, 2, 0])
    assert (found.id, found.severity, found.count, found.places) == ("Q06", "info", 1, ("cow",))
    assert absent_classes("train.json", [("cat", 3), ("dog", 0)], [0, 1]) == []
    assert absent_classes("train.json", [("cat", 0), ("dog", 0)], [0, 0]) == []  # another finding


@pytest.mark.parametrize(
    ("counts", "rare"),
    [
        ([], 0),
        ([0, 0], 0),
        ([4999, 100], 0),
        ([4950, 99], 1),
        ([4949, 99], 0),
        ([5000, 50, 20, 0], 2),
    ],
)
def test_classes_far_rarer_than_another(counts: list[int], rare: int) -> None:
    found = imbalance("train.json", [(f"class {i}", count) for i, count in enumerate(counts)])
    assert [finding.count for finding in found] == [rare] * bool(rare)


def test_rare_classes_are_listed_with_their_numbers() -> None:
    (found,) = imbalance("train.json", [("person", 4210), ("toaster", 9), ("chair", 700)])
    assert found.text == "train.json: 1 class has few objects (toaster 9) beside person (4,210)"
    assert found.places == ("toaster: 9 objects",)
    assert "repeat-factor" in found.remedy


def test_classes_of_the_validation_split_alone(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for images, split in enumerate(("train", "val"), start=1):
        (tmp_path / split).mkdir()
        value = content(images)
        value["annotations"] += [{**value["annotations"][0], "id": 7, "bbox": [20, 2, 9, 9]}]
        write_images(tmp_path / split, value, seed=images)
        write(tmp_path / "annotations", value, f"instances_{split}.json")
    (found,) = audit(tmp_path).findings
    assert (found.id, found.severity, found.count, found.places) == ("Q05", "warning", 1, ("plate",))


def test_a_report_has_the_places_of_what_it_counts(tmp_path: Path) -> None:
    value = content(120)
    for i, row in enumerate(value["annotations"][:20]):
        row["bbox"] = [[2, 3, 0, 5], [90, 3, 5, 5], [35, 3, 10, 5]][min(i, 2)]
    found = {(finding.id, finding.count): finding for finding in load(tmp_path, value).report.findings()}
    assert set(found) == {("D07", 1), ("D16", 1), ("Q12", 18)}
    assert found["D07", 1].places == ("train.json: annotations[0] (id=100, image_id=10): bbox [2.0, 3.0, 0.0, 5.0]",)
    assert found["D16", 1].text == "train.json: 1 box outside their image: dropped"
    assert len(found["Q12", 18].places) == PLACES


def test_a_training_prints_warnings_with_their_remedy() -> None:
    findings = [
        Finding("Q04", "warning", 1, "a", ("place",), "b"),
        Finding("Q06", "info", 1, "c"),
        Finding("Q08", "warning", 1, "d\n\x1b"),
    ]
    assert warnings_of(findings) == ("a; b", "d\\n\\x1b")
