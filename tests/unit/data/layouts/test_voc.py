"""Pascal VOC sets: boxes computed by hand, both conventions of coordinates, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.data.coco.audit import Policy, audit
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.layouts.voc_xml import MAX_XML_BYTES
from lora_detr.errors import ConfigError, DataError
from tests.unit.data.layouts.sets import image, objects, pets, read, roboflow_voc, text, voc2007, xml


def made(root: Path, *lines: str, **options: str) -> Path:
    """Write a folder of one image, 40 x 30, and its XML file."""
    xml(root / "a.xml", lines, **options)
    image(root / "a.jpg")
    return root


def problems(data: Path) -> list[tuple[str, str]]:
    return [(problem.code, problem.text) for problem in audit(data).problems]


def test_voc2007_counts_from_1_and_ignores_difficult_objects(tmp_path: Path) -> None:
    train, val = read(voc2007(tmp_path))
    assert objects(train) == [
        (1, "person", [0, 0, 40, 30]),  # 1 to 40 inclusive are 40 pixels
        (1, "chair", [10, 5, 10, 10]),
        (2, "car", [4, 5, 3, 3]),
    ]
    assert train.ground_truth.crowd.tolist() == [False, True, False]
    assert (train.report.objects, train.report.crowd) == (2, 1)
    assert train.categories.names_by_id == {1: "car", 2: "chair", 3: "person"}
    assert val is not None
    assert objects(val) == [(1, "person", [1, 2, 11, 11])]
    assert val.categories == train.categories


def test_difficult_objects_may_be_kept(tmp_path: Path) -> None:
    train, _ = read(voc2007(tmp_path), how=ReadAs(voc_difficult="keep"))
    assert (train.report.objects, train.report.crowd) == (3, 0)
    assert "1 difficult object: kept" in train.report.remarks()


@pytest.mark.parametrize(("offset", "box"), [(0, [1, 1, 39, 29]), (1, [0, 0, 40, 30])])
def test_the_offset_can_be_given(offset: int, box: list[float], tmp_path: Path) -> None:
    train, val = read(voc2007(tmp_path), how=ReadAs(voc_offset=offset))  # type: ignore[arg-type]
    assert objects(train)[0] == (1, "person", box)
    assert train.report.remarks() == ["1 crowd region: not trained on, ignored in evaluation"]
    assert val is not None
    assert objects(val)[0][2] == [2 - offset, 3 - offset, 10 + offset, 10 + offset]


@pytest.mark.parametrize(
    ("lines", "offset"),
    [
        (["a 1 5 40 20"], 1),  # ends at the border
        (["a 5 1 20 30"], 1),  # at the lower border
        (["a 0 5 40 20"], 0),  # begins at 0
        (["a 1 5 39 20"], 0),  # does not end at the border
        (["a 1 1 40 30", "a 0 3 5 6"], 0),
        ([], 0),
    ],
)
def test_the_offset_is_decided_by_what_boxes_touch(lines: list[str], offset: int, tmp_path: Path) -> None:
    train, _ = read(made(tmp_path, "a 3 3 5 5", *lines))
    assert train.report.notes == (f"boxes: taken to count pixels from {offset} (data.voc_offset sets it)",)
    assert objects(train)[0][2] == [3 - offset, 3 - offset, 2 + offset, 2 + offset]


def test_the_validation_split_is_read_as_the_training_split(tmp_path: Path) -> None:
    made(tmp_path / "train", "a 0 0 10 10")
    made(tmp_path / "val", "a 1 1 40 30")  # alone it would be taken to count from 1
    assert objects(read(tmp_path)[1]) == [(1, "a", [1, 1, 39, 29])]  # type: ignore[arg-type]


def test_roboflow_folders(tmp_path: Path) -> None:
    train, val = read(roboflow_voc(tmp_path))
    assert objects(train) == [(1, "dog", [0, 0, 10, 10]), (1, "cat", [5, 5, 20, 15])]
    assert val is not None
    assert objects(val) == [(1, "cat", [1, 2, 2, 2])]
    assert val.categories.names == ("cat", "dog")
    assert (train.report.file, val.report.file) == ("train", "valid")


def test_pets_are_found_by_the_names_of_their_xml_files(tmp_path: Path) -> None:
    train, val = read(pets(tmp_path))
    assert [record.file_name for record in train.records] == ["Abyssinian_1.jpg", "beagle_1.jpg"]
    assert objects(train) == [(1, "cat", [0, 2, 30, 18]), (2, "dog", [10, 2, 10, 20])]
    assert val is None
    assert "1 image without an XML file: left out (Bombay_3.jpg)" in train.report.remarks()


def test_a_class_that_only_the_validation_split_has_is_an_error(tmp_path: Path) -> None:
    made(tmp_path / "train", "head 0 0 10 10")
    made(tmp_path / "val", "head 0 0 5 5", "heads 1 1 5 5", "heads 2 2 5 5")
    (problem,) = audit(tmp_path).problems
    expected = "val/a.xml: object[1]: name 'heads' is not in the training split train (2 objects); did you mean 'head'?"
    assert (problem.code, problem.text) == ("D10", expected)


@pytest.mark.parametrize("size", ["", "0x0"])
def test_a_size_that_is_not_stated_is_that_of_the_image(size: str, tmp_path: Path) -> None:
    (record,) = read(made(tmp_path, "a 0 0 50 50", size=size))[0].records
    assert (record.width, record.height, record.boxes_xyxy_pixels.tolist()) == (40, 30, [[0, 0, 40, 30]])


def test_a_wrong_size_is_found_by_looking_at_the_images(tmp_path: Path) -> None:
    data = made(tmp_path, "a 0 0 10 10", size="41x30")
    assert [problem.code for problem in audit(data, verify="decode").problems] == ["D23"]


def test_coordinates_may_be_fractions(tmp_path: Path) -> None:
    assert objects(read(made(tmp_path, "a 0.5 1.25 10.5 20"))[0]) == [(1, "a", [0.5, 1.25, 10, 18.75])]


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("a 5 5 2 9", "D07", "bbox width -3.0 must be > 0"),
        ("a nan 5 9 9", "D07", "bbox [NaN, 5.0, NaN, 4.0] must be finite"),
        ("a one 5 9 9", "D09", "xmin must be a number, found 'one'"),
        ("a 1 2 3", "D09", "expected <bndbox><ymax>, found none"),
        ("a 1 2 3 4 maybe", "D15", "difficult must be 0 or 1, found 'maybe'"),
    ],
)
def test_an_object_that_cannot_be_read_is_reported_with_file_and_number(
    line: str, code: str, what: str, tmp_path: Path
) -> None:
    data = made(tmp_path, "a 0 0 9 9", line)
    assert problems(data) == [(code, f"a.xml: object[1]: {what}")]
    if code in ("D07", "D09"):
        train, _ = read(data, Policy(on_bad_data="skip"))
        assert (train.report.objects, train.report.bad_boxes) == (1, 1)


def test_an_object_without_a_name_is_reported_and_others_keep_their_numbers(tmp_path: Path) -> None:
    xml(tmp_path / "a.xml", ["NO 0 0 9 9", "a 5 5 2 9"])
    (tmp_path / "a.xml").write_text((tmp_path / "a.xml").read_text().replace("<name>NO</name>", ""))
    image(tmp_path / "a.jpg")
    assert problems(tmp_path) == [
        ("D02", "a.xml: object[0]: expected a <name>, found none"),
        ("D07", "a.xml: object[1]: bbox width -3.0 must be > 0"),
    ]


LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY l0 "ha">'
    + "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    + "]>\n<annotation>&l9;</annotation>"
)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LAUGHS, "a.xml:2: a document type (<!DOCTYPE>) is not read, since it may define entities"),
        (
            '<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>',
            "a.xml:1: a document type (<!DOCTYPE>) is not read, since it may define entities",
        ),
        ("<annotation>\n<object>", "a.xml:2: not valid XML: no element found"),
        ("<annotation>&undefined;</annotation>", "a.xml:1: not valid XML: undefined entity"),
        ("", "a.xml:1: not valid XML: no element found"),
        ("<annotations></annotations>", "a.xml:1: the root must be <annotation>, found <annotations>"),
        ("<annotation>" + "<a>" * 50, "a.xml:1: more than 32 elements within each other"),
        ("\x00\x01\x02", "a.xml:1: not valid XML: not well-formed (invalid token)"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "a.xml:1: not valid XML: unknown encoding: none"),
    ],
)
def test_xml_that_is_not_read(content: str, what: str, tmp_path: Path) -> None:
    data = made(tmp_path, "a 0 0 9 9")
    xml(tmp_path / "b.xml", ["a 0 0 9 9"])
    image(tmp_path / "b.jpg")
    text(tmp_path / "a.xml", content)
    assert problems(data)[0] == ("D01", what)


def test_a_huge_xml_file_is_refused_unread(tmp_path: Path) -> None:
    made(tmp_path, "a 0 0 9 9")
    with (tmp_path / "a.xml").open("wb") as file:
        file.truncate(MAX_XML_BYTES + 1)
    assert problems(tmp_path)[0] == (
        "D01",
        "a.xml: the XML file cannot be read: 16,000,001 bytes, at most 16,000,000 are read",
    )


def test_an_image_that_is_absent_or_leads_out_of_the_folder_is_an_error(tmp_path: Path) -> None:
    data = made(tmp_path / "data", "a 0 0 9 9")
    for stem, filename in (("b", ""), ("c", "../../secret.jpg")):
        xml(data / f"{stem}.xml", ["a 0 0 9 9"], filename=filename)
    codes = [(code, text.partition(":")[0]) for code, text in problems(data)]
    assert sorted(codes) == [("D17", "b.xml"), ("X01", "c.xml")]


def test_two_images_of_one_name_are_told_apart_by_the_file_or_refused(tmp_path: Path) -> None:
    data = made(tmp_path, "a 0 0 9 9", filename="a.png")
    image(tmp_path / "a.png")
    assert [record.file_name for record in read(data)[0].records] == ["a.png"]
    xml(tmp_path / "a.xml", ["a 0 0 9 9"], filename="x.png")
    assert ("D17", "a.xml: expected one image of this name, found a.jpg and a.png") in problems(data)


@pytest.mark.parametrize(
    ("lines", "code", "what"),
    [
        ("000005 1\n", "", r"train\.txt:1: expected the name of an image, found 2 columns"),
        ("000005\n../../secret\n", "X01", r"train\.txt:2: \.\./\.\./secret leads out of Annotations/"),
        ("/etc/hostname\n", "X01", r"train\.txt:1: /etc/hostname leads out of Annotations/"),
    ],
)
def test_a_list_that_is_none_of_a_split_is_refused(lines: str, code: str, what: str, tmp_path: Path) -> None:
    lists = voc2007(tmp_path) / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    text(lists / "train.txt", lines)
    with pytest.raises(DataError, match=what) as caught:
        find_splits(tmp_path)
    assert caught.value.code == code


def test_an_image_of_a_list_needs_its_xml_file(tmp_path: Path) -> None:
    lists = voc2007(tmp_path) / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    text(lists / "train.txt", "000005\n000012\n")
    what = "Annotations/000012.xml: the XML file cannot be read: No such file or directory"
    assert problems(tmp_path)[0] == ("D01", what)


def test_splits_of_the_challenge(tmp_path: Path) -> None:
    year = voc2007(tmp_path) / "VOCdevkit" / "VOC2007"
    for data in (tmp_path, year.parent, year):
        assert find_splits(data).train.name == "VOC2007/train.txt"
    (year / "ImageSets" / "Main" / "train.txt").unlink()
    paths = find_splits(year)
    assert (paths.train.name, paths.missing) == ("VOC2007/trainval.txt", "ImageSets/Main/test.txt")
    year.rename(year.with_name("VOC2012"))
    voc2007(tmp_path)
    with pytest.raises(ConfigError, match=r"expected one year, found VOC2007, VOC2012"):
        find_splits(tmp_path)
