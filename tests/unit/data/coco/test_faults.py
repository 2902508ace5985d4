"""Bad annotation files: each stops with the code, the file, the index and the id of what is wrong."""

from __future__ import annotations

import gzip
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


@pytest.mark.parametrize("raw", [b"{\xff", b"[" * 100_000])
def test_bytes_that_no_parser_takes_d01(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.json(:1:\d)?: not valid JSON") as caught:
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


@pytest.mark.parametrize("image_id", ["10", 10.5, 1e300, float(2**54), True, None, [10]])
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
    assert any("1 box without width or height" in line for line in report.lines())


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


@pytest.mark.parametrize("area", ["12", -1, float("nan"), None, True, 10**400, -(10**400), float("inf")])
def test_area_that_is_no_size_d14(tmp_path: Path, area: object) -> None:
    value = content()
    value["annotations"][2]["area"] = area
    _fault(tmp_path, value, "D14", "annotations[2]", "area must be a finite number of at least 0")


@pytest.mark.parametrize(
    "path",
    [
        *(("annotations", 2, key) for key in ("id", "image_id", "category_id", "area", "iscrowd", "bbox")),
        *(("images", 1, key) for key in ("id", "width", "height", "file_name")),
        ("categories", 0, "id"),
        ("info",),
    ],
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_too_long_for_python_is_named_with_its_place_d01(
    tmp_path: Path, path: tuple[str | int, ...], sign: str
) -> None:
    value: Any = {**content(), "info": 0}
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = "here"
    before, after = json.dumps(value).split('"here"')
    file = tmp_path / "train.json"
    file.write_text(before + sign + "9" * 5000 + after)
    with pytest.raises(DataError) as caught:
        load_coco(file, tmp_path)
    assert caught.value.code == "D01"
    found = f"train.json:1:{len(before) + 1}: not valid JSON: an integer of more than 4,300 digits"
    assert caught.value.message == found


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


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (gzip.compress(b"{}", mtime=0), "a gzip file; unpack it with gunzip"),
        (b"PK\x03\x04...", "a zip file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("{}".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b"<!DOCTYPE html>", "XML or HTML"),
    ],
)
def test_other_files_are_recognised_d01(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes(raw)
    with pytest.raises(DataError, match="expected COCO JSON, found") as caught:
        load_coco(tmp_path / "train.json", tmp_path)
    assert said in caught.value.message
    assert caught.value.code == "D01"


def test_whole_numbers_may_have_a_decimal_point(tmp_path: Path) -> None:
    value = content()
    expected = load(tmp_path, value)
    for section in ("images", "annotations", "categories"):
        for row in value[section]:
            row |= {key: float(row[key]) for key in ("id", "image_id", "category_id", "width", "height") if key in row}
    found = load(tmp_path, value)
    assert found.fingerprint == expected.fingerprint
    assert found.image_ids == expected.image_ids
    assert all(type(image_id) is int for image_id in found.image_ids)
    assert found.records.category_ids.tolist() == expected.records.category_ids.tolist()


def many(count: int = 33) -> dict[str, Any]:
    value = content()
    first = value["annotations"][0]
    return {**value, "annotations": [{**first, "id": i} for i in range(count)]}


def problems_of(tmp_path: Path, value: dict[str, Any]) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        load(tmp_path, value)
    return [problem.text for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": "000123"}, 'image_id must be a 64-bit integer, found "000123" (the same in 32 more of 33'),
        ({"category_id": 99}, "category_id 99 is not in categories (33 annotations)"),
        ({"image_id": 99}, "image_id 99 is not in images (33 annotations)"),
        ({"bbox": [1, 2, 3, 4, 0.5]}, "bbox must be a list of 4 numbers, found 5 (the same in 32 more"),
        ({"bbox": [1, 2, "3", 4]}, 'found a string "3" (the same in 32 more'),
    ],
)
def test_one_cause_is_one_problem(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    value = many()
    for row in value["annotations"]:
        row |= change
    (text,) = problems_of(tmp_path, value)
    assert said in text


def test_categories_without_a_name_are_no_fault_of_the_annotations(tmp_path: Path) -> None:
    value = many()
    for row in value["categories"]:
        del row["name"]
    texts = problems_of(tmp_path, value)
    assert texts
    assert all("missing key 'name'" in text for text in texts)


def test_each_bad_number_is_a_fault_of_its_own(tmp_path: Path) -> None:
    value = many(5)
    for row in value["annotations"]:
        row["bbox"] = [1, 1, -2, 3]
    assert len(problems_of(tmp_path, value)) == 5


def test_an_absent_key_is_missing_and_not_null(tmp_path: Path) -> None:
    value = content()
    del value["images"][0]["file_name"]
    assert any("missing key 'file_name'" in text for text in problems_of(tmp_path, value))


class TestMissingFiles:
    """An image whose file is not there is as unusable as a broken one; a name that is nearly right is named."""

    def value(self, folder: Path) -> dict[str, Any]:
        value = content()
        write_images(folder, value)
        return value

    def test_they_are_left_out_named_and_counted_d17(self, tmp_path: Path) -> None:
        value = self.value(tmp_path)
        whole = load(tmp_path, value, check_files=True)
        gone = value["images"][0]
        (tmp_path / gone["file_name"]).unlink()
        split = load(tmp_path, value, check_files=True, on_bad_data="skip")
        assert gone["id"] not in split.image_ids
        assert len(split) == len(whole) - 1
        assert gone["id"] not in split.ground_truth.image_ids.tolist()
        rest = whole.without([gone["id"]])
        assert split.ground_truth.boxes_xywh_pixels.tolist() == rest.ground_truth.boxes_xywh_pixels.tolist()
        assert split.records.category_ids.tolist() == rest.records.category_ids.tolist()
        assert split.report.missing_files == (gone["file_name"],)
        line = f"1 missing image file: left out on request ({gone['file_name']})"
        assert line in split.report.remarks()
        assert split.report.images == len(split)

    def test_more_than_half_missing_is_an_error_all_the_same_d17(self, tmp_path: Path) -> None:
        value = self.value(tmp_path)
        for row in value["images"][: len(value["images"]) // 2 + 1]:
            (tmp_path / row["file_name"]).unlink()
        with pytest.raises(AnnotationError) as caught:
            load(tmp_path, value, check_files=True, on_bad_data="skip")
        assert {problem.code for problem in caught.value.problems} == {"D17"}

    @pytest.mark.parametrize(
        ("there", "asked"),
        [
            ("Photo 1.PNG", "photo 1.png"),
            ("photo 1.png", "photo%201.png"),
            ("photo.png", "photo.jpg"),
            ("photo.png", "images/photo.png"),
            ("na\u00efve.png", "nai\u0308ve.png"),
            ("photo.png", " photo.png"),
        ],
    )
    def test_what_is_nearly_called_so_is_named_d17(self, there: str, asked: str, tmp_path: Path) -> None:
        value = self.value(tmp_path)
        (tmp_path / value["images"][0]["file_name"]).rename(tmp_path / there)
        value["images"][0]["file_name"] = asked
        with pytest.raises(AnnotationError, match="D17") as caught:
            load(tmp_path, value, check_files=True)
        assert f"there is {tmp_path / there}" in str(caught.value)

    @pytest.mark.parametrize("asked", ["inner\\{}", "inner%2F{}", "inner%5C{}"])
    def test_other_separators_are_read_and_counted(self, asked: str, tmp_path: Path) -> None:
        value = self.value(tmp_path)
        (tmp_path / "inner").mkdir()
        name = value["images"][0]["file_name"]
        (tmp_path / name).rename(tmp_path / "inner" / name)
        value["images"][0]["file_name"] = asked.format(name)
        split = load(tmp_path, value, check_files=True)
        assert split.records[0].path == tmp_path / "inner" / name
        assert "1 file name with another separator than /, read as if it were /" in split.report.remarks()

    def test_no_separator_leads_out_of_the_folder_x01(self, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        value = self.value(inside)
        (tmp_path / "secret.png").write_bytes(b"")
        value["images"][0]["file_name"] = "..\\secret.png"
        with pytest.raises(AnnotationError) as caught:
            load(inside, value, check_files=True)
        assert caught.value.problems[0].code == "D17"
        assert "secret.png (1 of" in caught.value.problems[0].text  # not named as there
