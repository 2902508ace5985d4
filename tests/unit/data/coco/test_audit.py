"""Both splits of a data set together: all problems at once, what looks wrong, and images that stand in both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_detr.data.coco.audit import Policy, audit, examine
from lora_detr.data.coco.report import AnnotationError
from lora_detr.data.coco.shared_images import shared_images
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import DataError
from tests.unit.data.coco.coco_files import content, load, write, write_images


def _data(folder: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    """Write a COCO folder; the images of the two splits differ, their names do not."""
    (folder / "annotations").mkdir()
    for seed, (split, value) in enumerate((("train", train), ("val", val))):
        (folder / split).mkdir()
        write_images(folder / split, value, seed)
        write(folder / "annotations", value, f"instances_{split}.json")
    return folder


def test_a_faultless_data_set_has_reports_and_nothing_else(tmp_path: Path) -> None:
    result = audit(_data(tmp_path, content(3), content(2)), verify="decode")
    assert [(report.file, report.images) for report in result.reports] == [
        ("instances_train.json", 3),
        ("instances_val.json", 2),
    ]
    assert (result.problems, result.warnings) == ((), ())
    assert [(row.id, row.name, row.objects) for row in result.reports[0].per_category] == [
        (1, "cell", 2),
        (2, "plate", 1),
    ]
    assert json.loads(json.dumps(result.to_json()))["reports"][1]["objects"] == 2


def test_problems_of_both_splits_are_collected(tmp_path: Path) -> None:
    train, val = content(3), content(2)
    data = _data(tmp_path, train, val)
    train["annotations"][0]["category_id"] = 99
    train["annotations"][1]["bbox"] = [1, 2, -3, 4]
    val["annotations"][0]["iscrowd"] = 7
    write(data / "annotations", train, "instances_train.json")
    write(data / "annotations", val, "instances_val.json")
    result = audit(data)
    assert [problem.code for problem in result.problems] == ["D10", "D07", "D15"]
    assert result.reports == ()
    with pytest.raises(AnnotationError, match=r"3 problems in .*train\.json and .*val\.json") as caught:
        examine(find_splits(data), Policy()).raise_faults()
    assert caught.value.problems == result.problems


def test_a_single_fault_stays_the_error_it_is(tmp_path: Path) -> None:
    data = _data(tmp_path, content(3), content(2))
    (data / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(DataError, match=r"instances_val\.json:1:2: not valid JSON.*\n.*get it again"):
        examine(find_splits(data), Policy()).raise_faults()
    result = audit(data)
    assert [problem.code for problem in result.problems] == ["D01"]
    assert [report.file for report in result.reports] == ["instances_train.json"]


def test_bad_images_of_both_splits_are_problems_unless_they_are_skipped(tmp_path: Path) -> None:
    data = _data(tmp_path, content(3), content(2))
    (data / "train" / "2.png").write_bytes(b"")
    (data / "val" / "0.png").write_bytes(b"<html>")
    result = audit(data, verify="decode")
    assert [problem.code for problem in result.problems] == ["D18", "D18"]
    assert str(data / "val" / "0.png") in result.problems[1].text
    assert audit(data).problems == ()
    skipped = audit(data, verify="decode", on_bad_data="skip")
    assert skipped.problems == ()
    assert [report.unreadable for report in skipped.reports] == [1, 1]
    assert any(line.startswith("instances_val.json: 1 image that cannot be read") for line in skipped.warnings)
    (data / "val" / "1.png").write_bytes(b"")
    assert len(audit(data, verify="decode", on_bad_data="skip").problems) == 2  # none is left


def test_categories_of_the_validation_split_must_be_those_of_training(tmp_path: Path) -> None:
    val = content(2)
    val["categories"].append({"id": 9, "name": "other"})
    val["annotations"][0]["category_id"] = 9
    (problem,) = audit(_data(tmp_path, content(3), val)).problems
    assert problem.code == "D10"
    assert "9 'other'" in problem.text


def test_and_what_was_dropped_are_warnings_d12_d29(tmp_path: Path) -> None:
    train = content(3)
    train["categories"][1]["name"] = "cell"
    train["annotations"][0]["bbox"] = [1, 1, 0, 5]
    data = _data(tmp_path, train, {**content(2), "categories": train["categories"]})
    train["images"][1]["file_name"] = "0.png"
    write(data / "annotations", train, "instances_train.json")
    warnings = audit(data).warnings
    for text in ("1 box without width or height", "1 image shares a file", "1 category shares a name"):
        assert any(line.startswith(f"instances_train.json: {text}") for line in warnings)


@pytest.mark.parametrize("kind", ["same folder", "same name and bytes", "link"])
def test_shared_images_are_found_d27(tmp_path: Path, kind: str) -> None:
    data = _data(tmp_path, content(3), content(2))
    if kind == "same folder":
        shutil.rmtree(data / "val")
        (data / "val").symlink_to(data / "train")
        ids = "10 and 10, 11 and 11"
    else:
        (data / "val" / "1.png").unlink()
        place = shutil.copy if kind == "same name and bytes" else (lambda old, new: Path(new).symlink_to(old))
        place(data / "train" / "1.png", data / "val" / "1.png")
        ids = "11 and 11"
    count = ids.count("and")
    result = audit(data, allow_outside=True)
    assert result.problems == ()
    (warning,) = result.warnings
    assert f"share {count} of 2 validation images (ids {ids})" in warning
    strict = audit(data, strict=True, allow_outside=True)
    assert [problem.code for problem in strict.problems] == ["D27"] * count
    assert "instances_val.json: image id 11 (1.png) is image id 11 of instances_train.json" in strict.problems[-1].text


def test_a_copy_of_another_name_is_found_when_files_are_verified_d27(tmp_path: Path) -> None:
    data = _data(tmp_path, content(3), content(2))
    shutil.copy(data / "train" / "2.png", data / "val" / "0.png")
    assert audit(data).warnings == ()
    (warning,) = audit(data, verify="decode").warnings
    assert "share 1 of 2 validation images (ids 12 and 10)" in warning


def test_names_that_both_splits_use_for_different_images_are_fine_d27(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    assert shared_images(load(first, content(3)).records, load(second, content(3)).records) == []  # no files at all
    assert shared_images(load(first, content(3)).records, load(first, content(2)).records) == [(10, 10), (11, 11)]
