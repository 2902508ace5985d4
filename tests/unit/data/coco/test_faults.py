"""Bad annotation files: each stops with the code, the file, the index and the id of what is wrong."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from lora_detr.data.coco.report import AnnotationError
from lora_detr.data.coco.split import load_coco
from lora_detr.errors import DataError
from tests.unit.data.coco.coco_files import content, load, write, write_images


def _fault(folder: Path, value: Any, code: str, *texts: str, **options: Any) -> str:
    """Load, expect one kind of fault and return its message."""
    with pytest.raises(DataError) as caught:
        load(folder, value, **options)
    error = caught.value
    assert error.code == code
    assert error.exit_code == 3
    message = str(error)
    assert message.startswith(f"error[{code}]: train.json")
    for text in texts:
        assert text in message
    return message


@pytest.mark.parametrize("share", [i / 20 for i in range(20)])
def test_truncated_file_names_line_and_column_d01(tmp_path: Path, share: float) -> None:
    text = json.dumps(content(), indent=1)
    message = _fault(tmp_path, text[: int(share * len(text))], "D01")
    assert re.match(r"error\[D01\]: train\.json:\d+:\d+: ", message)


@pytest.mark.parametrize("raw", [b"\xff\xfe{}", b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}"])
def test_bytes_that_no_parser_takes_d01(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.json(:1:1)?: not valid JSON") as caught:
        load_coco(path, tmp_path)
    assert caught.value.code == "D01"


def test_absent_file_d01(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: the annotation file cannot be read"):
        load_coco(tmp_path / "absent.json", tmp_path)


def test_root_is_a_list_d02(tmp_path: Path) -> None:
    _fault(tmp_path, [], "D02", "the root must be an object, found a list")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_or_wrong_section_d02(tmp_path: Path, key: str) -> None:
    value = content()
    value[key] = {}
    _fault(tmp_path, value, "D02", f"'{key}' must be a list, found an object")
    del value[key]
    _fault(tmp_path, value, "D02", f"missing key '{key}'")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_section_that_appears_twice_d02(tmp_path: Path, key: str) -> None:
    text = json.dumps(content())
    _fault(tmp_path, text[:-1] + f', "{key}": []}}', "D02", f"key '{key}' appears twice")


@pytest.mark.parametrize("key", ["width", "height", "file_name", "id"])
def test_image_without_a_key_d02(tmp_path: Path, key: str) -> None:
    value = content()
    del value["images"][1][key]
    _fault(tmp_path, value, "D02", "train.json: images[1]", key)


@pytest.mark.parametrize("key", ["width", "height"])
def test_a_size_that_no_column_holds_d02(tmp_path: Path, key: str) -> None:
    value = content()
    value["images"][1][key] = 10**30
    _fault(tmp_path, value, "D02", f"images[1] (id=11): {key} must be below 2^63")


def test_a_category_name_that_cannot_be_printed_d02(tmp_path: Path) -> None:
    value = content()
    value["categories"][1]["name"] = "plate\ud800"
    _fault(tmp_path, value, "D02", "categories[1] (id=2): name", "holds half a character").encode()


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_row_that_is_no_object_d02(tmp_path: Path, section: str) -> None:
    value = content()
    value[section].append([1, 2])
    index = len(value[section]) - 1
    message = _fault(tmp_path, value, "D02", f"{section}[{index}]: must be an object, found a list")
    assert "1 problem in" in message


def test_duplicate_image_id_names_both_indices_d03(tmp_path: Path) -> None:
    value = content()
    value["images"][2]["id"] = 10
    _fault(tmp_path, value, "D03", "images[2] (id=10)", "images[0]")


def test_duplicate_annotation_id_names_both_indices_d04(tmp_path: Path) -> None:
    value = content()
    value["annotations"][2]["id"] = 100
    _fault(tmp_path, value, "D04", "annotations[2] (id=100, image_id=12)", "annotations[0]")


def test_unknown_image_d06(tmp_path: Path) -> None:
    value = content()
    value["annotations"][1]["image_id"] = 999
    _fault(tmp_path, value, "D06", "annotations[1] (id=101, image_id=999)")


@pytest.mark.parametrize("image_id", ["10", 10.0, True, None, [10]])
def test_image_id_of_another_type_d06(tmp_path: Path, image_id: object) -> None:
    value = content()
    value["annotations"][1]["image_id"] = image_id
    _fault(tmp_path, value, "D06", "annotations[1]", "image_id must be a 64-bit integer")


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([1, 1, -3, 5], "bbox width -3 must be > 0"),
        ([1, 1, 3, -0.5], "bbox height -0.5 must be > 0"),
        ([1, float("nan"), 3, 5], "must be finite"),
        ([1, 1, float("inf"), 5], "must be finite"),
        ([1, 1, 10**400, 5], "must be finite"),
    ],
)
def test_negative_or_not_finite_d07(tmp_path: Path, box: list[float], text: str) -> None:
    value = content()
    value["annotations"][1]["bbox"] = box
    _fault(tmp_path, value, "D07", "annotations[1] (id=101, image_id=11)", text)
    split = load(tmp_path, value, on_bad_data="skip")
    assert split.report.bad_boxes == 1
    assert split.report.objects == 2
    assert len(split.records[1].category_ids) == 0


@pytest.mark.parametrize("box", [[1, 1, 0, 5], [1, 1, 5, 0], [1, 1, 0, 0], [20, 1, 1e-9, 5]])
def test_zero_size_is_dropped_and_counted_d07(tmp_path: Path, box: list[float]) -> None:
    value = content()
    value["annotations"][1]["bbox"] = box
    report = load(tmp_path, value).report
    assert (report.zero_size, report.outside, report.objects, report.images_without_objects) == (1, 0, 2, 1)
    assert any("1 boxes without width or height" in line for line in report.lines())


def test_zero_size_stops_when_strict_d07(tmp_path: Path) -> None:
    value = content()
    value["annotations"][1]["bbox"] = [1, 1, 0, 5]
    _fault(tmp_path, value, "D07", "annotations[1] (id=101, image_id=11): bbox width 0 must be > 0", strict=True)


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([1, 2, 3], "found 3"),
        ([1, 2, 3, 4, 5], "found 5"),
        ([1, 2, "3", 4], 'found a string "3"'),
        ([1, 2, None, 4], "found null"),
        ([1, 2, True, 4], "found a boolean true"),
        ("1234", "found a string"),
        (None, "found null"),
        ({"x": 1}, "found an object"),
    ],
)
def test_malformed_box_d09(tmp_path: Path, box: object, text: str) -> None:
    value = content()
    value["annotations"][1]["bbox"] = box
    _fault(tmp_path, value, "D09", "annotations[1] (id=101, image_id=11): bbox must be a list of 4 numbers", text)


def test_missing_box_d09(tmp_path: Path) -> None:
    value = content()
    del value["annotations"][1]["bbox"]
    _fault(tmp_path, value, "D09", "missing key 'bbox'")


def test_unknown_category_d10(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["category_id"] = 99
    _fault(tmp_path, value, "D10", "annotations[0] (id=100, image_id=10): category_id 99")


def test_duplicate_category_id_d12(tmp_path: Path) -> None:
    value = content()
    value["categories"].append({"id": 1, "name": "other"})
    _fault(tmp_path, value, "D12", "categories[2] (id=1)", "categories[0]")


def test_duplicate_category_name_is_counted_d12(tmp_path: Path) -> None:
    value = content()
    value["categories"][1]["name"] = "cell"
    assert load(tmp_path, value).report.duplicate_category_names == 1


def test_missing_area_and_iscrowd_are_filled_and_counted_d14(tmp_path: Path) -> None:
    value = content()
    del value["annotations"][0]["area"]
    del value["annotations"][1]["iscrowd"]
    split = load(tmp_path, value)
    assert (split.report.missing_area, split.report.missing_iscrowd) == (1, 1)
    assert split.ground_truth.areas.tolist() == [120.0, 120.0, 120.0]
    assert not split.ground_truth.crowd.any()


def test_missing_id_d14(tmp_path: Path) -> None:
    value = content()
    del value["annotations"][2]["id"]
    _fault(tmp_path, value, "D14", "annotations[2] (image_id=12): missing key 'id'")


@pytest.mark.parametrize("area", ["12", -1, float("nan"), None, True])
def test_area_that_is_no_size_d14(tmp_path: Path, area: object) -> None:
    value = content()
    value["annotations"][2]["area"] = area
    _fault(tmp_path, value, "D14", "annotations[2]", "area must be a number of at least 0")


@pytest.mark.parametrize("crowd", [2, True, "1", None, 1.0])
def test_iscrowd_that_is_not_0_or_1_d15(tmp_path: Path, crowd: object) -> None:
    value = content()
    value["annotations"][1]["iscrowd"] = crowd
    _fault(tmp_path, value, "D15", "annotations[1] (id=101, image_id=11): iscrowd must be 0 or 1")


def test_partly_outside_is_clipped_and_counted_d16(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["bbox"] = [-5, 20, 15, 1e300]
    split = load(tmp_path, value)
    assert split.report.clipped == 1
    assert split.records[0].boxes_xyxy_pixels.tolist() == [[0, 20, 10, 30]]


@pytest.mark.parametrize("box", [[40, 3, 5, 5], [-9, 3, 9, 5], [2, 99, 5, 5], [1e308, 3, 1e308, 5]])
def test_outside_is_dropped_and_counted_d16(tmp_path: Path, box: list[float]) -> None:
    value = content()
    value["annotations"][0]["bbox"] = box
    split = load(tmp_path, value)
    assert (split.report.outside, split.report.zero_size, split.report.objects) == (1, 0, 2)
    assert len(split.ground_truth.areas) == 2
    _fault(tmp_path, value, "D16", "annotations[0]", "outside the image", strict=True)


def test_missing_file_names_path_id_and_count_d17(tmp_path: Path) -> None:
    value = content()
    write_images(tmp_path, value)
    load(tmp_path, value, check_files=True)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").mkdir()
    text = str(tmp_path / "1.png")
    _fault(tmp_path, value, "D17", "images[1] (id=11)", text, "2 of 3 image files are missing", check_files=True)


def test_name_that_no_file_can_have_d17(tmp_path: Path) -> None:
    value = content()
    write_images(tmp_path, value)
    value["images"][1]["file_name"] = "half \ud800.png"
    _fault(tmp_path, value, "D17", "images[1] (id=11)", "cannot be the name of a file", check_files=True)


def test_link_to_itself_hides_no_other_file_d17(tmp_path: Path) -> None:
    value = content()
    write_images(tmp_path, value)
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(AnnotationError) as caught:
        load(tmp_path, value, check_files=True)
    assert len(caught.value.problems) == 1
    assert "images[1] (id=11)" in str(caught.value)


def test_shared_file_name_is_counted_d29(tmp_path: Path) -> None:
    value = content()
    value["images"][1]["file_name"] = "0.png"
    assert load(tmp_path, value).report.duplicate_file_names == 1


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "..", "a/..", "x\0.png"])
@pytest.mark.parametrize("check_files", [False, True])
def test_file_name_that_leaves_the_folder_x01(tmp_path: Path, name: str, check_files: bool) -> None:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"")
    value = content(1)
    value["images"][0]["file_name"] = name
    code = "D17" if name == "a/.." and check_files else "X01"
    if name == "a/.." and not check_files:
        return  # the folder itself: not outside, and nobody asked whether it is a file
    _fault(folder, value, code, "images[0] (id=10)", check_files=check_files)


def test_link_that_leaves_the_folder_x01(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    value = content(1)
    write_images(tmp_path, value)
    (folder / "0.png").symlink_to(tmp_path / "0.png")
    _fault(folder, value, "X01", "images[0] (id=10)", "--allow-outside", check_files=True)
    assert len(load(folder, value, check_files=True, allow_outside=True)) == 1


def test_linked_folder_is_fine_x01(tmp_path: Path) -> None:
    value = content(1)
    real = tmp_path / "real"
    real.mkdir()
    write_images(real, value)
    (tmp_path / "link").symlink_to(real)
    assert len(load_coco(write(tmp_path, value), tmp_path / "link")) == 1


def test_absolute_file_name_x02(tmp_path: Path) -> None:
    value = content(1)
    write_images(tmp_path, value)
    value["images"][0]["file_name"] = str(tmp_path / "0.png")
    _fault(tmp_path, value, "X02", "images[0] (id=10)", "is absolute", check_files=True)
    split = load(tmp_path, value, check_files=True, allow_outside=True)
    assert split.records[0].path == tmp_path / "0.png"


def test_no_images_s01(tmp_path: Path) -> None:
    _fault(tmp_path, {"images": [], "annotations": [], "categories": []}, "S01", "found 0")


def test_all_problems_are_collected_and_20_shown(tmp_path: Path) -> None:
    value = content(40)
    for row in value["annotations"][:30]:
        row["bbox"] = [0, 0, -1, 1]
    value["annotations"][35]["iscrowd"] = 7
    with pytest.raises(AnnotationError) as caught:
        load(tmp_path, value)
    error = caught.value
    assert [problem.code for problem in error.problems] == ["D07"] * 30 + ["D15"]
    assert len(error.to_json()) == 31
    assert str(error).count("error[") == 20
    assert "... and 11 more" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
