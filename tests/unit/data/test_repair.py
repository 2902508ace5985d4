"""Annotation files after what needs no guess was repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_detr.data.coco.audit import Audit, audit
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.repair import repair
from lora_detr.errors import ConfigError, DataError
from tests.unit.data.coco.coco_files import content, write, write_images


def coco(folder: Path, value: dict[str, Any]) -> Path:
    """Write a COCO folder of one split; images are as large as the file states."""
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    write_images(folder / "train", value)
    write(folder / "annotations", value, "instances_train.json")
    return folder


def rewrite(data: Path, value: dict[str, Any]) -> None:
    write(data / "annotations", value, "instances_train.json")


def repaired(data: Path) -> tuple[dict[str, Any], list[tuple[str, int]], Audit]:
    """Return the new file, code and number of what was repaired, and what is found in the new file."""
    before = (data / "annotations" / "instances_train.json").read_bytes()
    done = repair(find_splits(data), data / "new")
    assert (data / "annotations" / "instances_train.json").read_bytes() == before
    new = json.loads((data / "new" / "instances_train.json").read_text())
    return new, [(finding.id, finding.count) for finding in done.findings], audit(done.data, verify="decode")


def codes(result: Audit) -> set[str]:
    """Return what was found, but for what every set of a few objects is found to have."""
    return {finding.id for finding in result.findings} - {"Q06", "Q08", "Q14"}


def test_a_faultless_file_stays_as_it_is(tmp_path: Path) -> None:
    value = {**content(3), "info": {"year": 2026}}
    value["annotations"][0]["segmentation"] = [[2, 3, 12, 3, 12, 15]]
    new, found, result = repaired(coco(tmp_path, value))
    assert new == value
    assert found == []
    assert codes(result) == set()


def test_all_repairs_together_leave_nothing_to_find(tmp_path: Path) -> None:
    value = content(4)
    data = coco(tmp_path, value)
    rows = value["annotations"]
    value["images"][1]["width"] = 47  # 40 in the file
    rows[0]["bbox"] = [30, 20, 20, 20]  # in an image of 40 x 30
    rows[0]["area"] = 400
    rows.append({**rows[1], "id": 200, "bbox": [5, 5, 0, 4]})
    rows.append({**rows[2], "id": 201, "bbox": [50, 5, 4, 4]})
    rows.append({**rows[2], "id": 202})
    rows.append({**rows[3], "id": 103, "bbox": [20, 3, 10, 12]})  # an id that is taken
    rewrite(data, value)
    assert codes(audit(data)) == {"D04"}
    new, found, result = repaired(data)
    assert found == [("D23", 1), ("D04", 1), ("Q12", 1), ("D07", 2), ("Q04", 1)]
    assert codes(result) == set()
    assert result.problems == ()
    assert new["images"][1]["width"] == 40
    assert new["annotations"][0]["bbox"] == [30, 20, 10, 10]
    assert new["annotations"][0]["area"] == 100
    assert [row["id"] for row in new["annotations"]] == [100, 101, 102, 103, 203]


def test_of_two_equal_boxes_the_lower_id_stays(tmp_path: Path) -> None:
    value = content(1)
    value["annotations"].insert(0, {**value["annotations"][0], "id": 999})
    new, _, _ = repaired(coco(tmp_path, value))
    assert [row["id"] for row in new["annotations"]] == [100]


def test_crowd_regions_repeat_nothing_and_the_area_of_an_outline_stays(tmp_path: Path) -> None:
    value = content(2)
    value["annotations"].append({**value["annotations"][0], "id": 300, "iscrowd": 1})
    value["annotations"][1] |= {"bbox": [35, 3, 10, 12], "area": 33.5}
    new, found, _ = repaired(coco(tmp_path, value))
    assert found == [("Q12", 1)]
    assert new["annotations"][1]["bbox"] == [35, 3, 5, 12]
    assert new["annotations"][1]["area"] == 33.5
    assert len(new["annotations"]) == 3


def negative_width(value: dict[str, Any]) -> None:
    value["annotations"][0]["bbox"] = [20, 3, -10, 12]


def shared_image_id(value: dict[str, Any]) -> None:
    value["images"][1]["id"] = value["images"][0]["id"]


def unknown_class(value: dict[str, Any]) -> None:
    value["annotations"][0]["category_id"] = 77


def not_an_object(value: dict[str, Any]) -> None:
    value["annotations"].append(5)


def text_for_numbers(value: dict[str, Any]) -> None:
    value["annotations"][0] |= {"bbox": ["1", 2, 3, 4], "image_id": [1]}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (negative_width, "D07"),
        (shared_image_id, "D03"),
        (unknown_class, "D10"),
        (not_an_object, "D02"),
        (text_for_numbers, "D09"),
    ],
)
def test_what_needs_a_guess_is_left_and_found_again(
    spoil: Callable[[dict[str, Any]], None], code: str, tmp_path: Path
) -> None:
    value = content(3)
    data = coco(tmp_path, value)
    spoil(value)
    rewrite(data, value)
    new, _, result = repaired(data)
    assert code in codes(result)
    assert len(new["annotations"]) == len(value["annotations"])


def test_boxes_of_another_convention_are_not_touched(tmp_path: Path) -> None:
    value = content(12)
    for i, row in enumerate(value["annotations"]):
        row["bbox"] = [20 + i % 3, 15, 38, 28]  # x1, y1, x2, y2
    data = coco(tmp_path, value)
    new, found, result = repaired(data)
    assert found == []
    assert new == value
    assert "D28" in codes(result)


@pytest.mark.parametrize(
    ("size", "box", "is_corrected"),
    [
        ((41, 30), [2, 3, 10, 12], True),
        ((30, 40), [2, 3, 10, 12], False),  # turned
        ((80, 60), [2, 3, 10, 12], False),  # resized, and the box with it or not
        ((80, 60), [32, 3, 40, 12], True),  # the box is not of the stated size
        ((30, 40), [2, 20, 10, 18], True),
        ((20, 30), [2, 3, 10, 12], True),
        ((20, 30), [22, 3, 10, 12], False),  # the box would be outside
    ],
)
def test_a_size_is_corrected_where_boxes_fit_the_file(
    size: tuple[int, int], box: list[int], is_corrected: bool, tmp_path: Path
) -> None:
    value = content(1)
    value["annotations"][0]["bbox"] = box
    data = coco(tmp_path, value)
    Image.new("RGB", size, (9, 99, 200)).save(data / "train" / "0.png")
    assert "D23" in codes(audit(data, verify="decode"))
    new, _, result = repaired(data)
    assert (new["images"][0]["width"], new["images"][0]["height"]) == (size if is_corrected else (40, 30))
    assert ("D23" in codes(result)) != is_corrected


def test_boxes_of_an_image_whose_size_is_in_doubt_are_not_touched(tmp_path: Path) -> None:
    value = content(1)
    value["annotations"][0]["bbox"] = [35, 3, 40, 12]
    data = coco(tmp_path, value)
    Image.new("RGB", (60, 50), (9, 99, 200)).save(data / "train" / "0.png")
    new, found, _ = repaired(data)
    assert (new, found) == (value, [])


def test_labels_of_other_layouts_become_annotation_files(tmp_path: Path) -> None:
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30), (9, 99, 200)).save(tmp_path / "images/train/a.png")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cell]\n")
    label = tmp_path / "labels/train/a.txt"
    label.write_text("0 0.5 0.5 0.5 0.5\n0 0.501 0.5 0.5 0.5\n")
    done = repair(find_splits(tmp_path), tmp_path / "new")
    (row,) = json.loads((tmp_path / "new" / "instances_train.json").read_text())["annotations"]
    assert row["bbox"] == [10, 7.5, 20, 15]
    assert row["area"] == 300
    assert [finding.id for finding in done.findings] == ["Q04"]
    assert codes(audit(done.data, verify="decode")) == set()
    label.write_text("0 0.5 0.5 0.5\n")
    result = audit(repair(find_splits(tmp_path), tmp_path / "newer").data)
    assert codes(result) == {"D09"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    data = coco(tmp_path, content(1))
    (data / "new").mkdir()
    (data / "new" / "file").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty") as caught:
        repair(find_splits(data), data / "new")
    assert caught.value.code == "C06"
    (data / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(DataError):
        repair(find_splits(data), data / "newer")
    assert sorted(path.name for path in data.iterdir()) == ["annotations", "new", "train"]
