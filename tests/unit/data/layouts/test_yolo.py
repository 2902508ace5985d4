"""YOLO sets: boxes computed by hand, rules of Ultralytics, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.data.coco.audit import Policy, audit
from lora_detr.data.coco.report import AnnotationError
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.images import decode_file
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.layouts.yolo_labels import MAX_LABEL_BYTES, label_of
from lora_detr.errors import ConfigError, DataError
from tests.unit.data.layouts.sets import coco8, cvat_yolo, image, objects, read, roboflow_yolo, text

COLUMNS = "expected `class x y width height`, or `class x1 y1 x2 y2 x3 y3 ...`"


def made(root: Path, labels: str | bytes = "", *, names: str = "names: [a, b]", orientation: int = 1) -> Path:
    """Write a set of one image, 40 x 30 before it is turned."""
    image(root / "images" / "train" / "a.jpg", orientation=orientation)
    label = text(root / "labels" / "train" / "a.txt", "")
    label.write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    text(root / "data.yaml", f"train: images/train\n{names}\n")
    return root


def problems(data: Path) -> list[tuple[str, str]]:
    return [(problem.code, problem.text) for problem in audit(data).problems]


def test_roboflow_boxes(tmp_path: Path) -> None:
    train, val = read(roboflow_yolo(tmp_path))
    # 40 x 30: centre (20, 15), sides 10 and 6; centre (10, 15), sides 20 and 30.
    assert objects(train) == [(1, "helmet", [15, 12, 10, 6]), (1, "head", [0, 0, 20, 30])]
    assert [record.file_name for record in train.records] == ["train0.jpg", "train1.jpg"]
    assert train.report.images_without_objects == 1
    assert val is not None
    assert [record.path for record in val.records] == [tmp_path / "valid" / "images" / f"valid{i}.jpg" for i in (0, 1)]


def test_coco8_boxes_and_ids_of_classes(tmp_path: Path) -> None:
    train, val = read(coco8(tmp_path))
    assert objects(train) == [
        (1, "name45", [10, 7.5, 20, 15]),
        (1, "name22", [32, 24, 8, 6]),
        (2, "name0", [4, 3, 8, 12]),  # the box around (0.1, 0.1), (0.3, 0.1), (0.3, 0.5), (0.2, 0.4)
    ]
    assert train.categories.ids == tuple(range(80))
    assert train.ground_truth.category_ids.tolist() == [45, 22, 0]
    assert train.report.remarks() == ["1 outline: read as the boxes around them"]
    assert train.report.images_without_objects == 1
    assert val is not None
    assert len(val) == 3


def test_cvat_lists(tmp_path: Path) -> None:
    train, val = read(cvat_yolo(tmp_path))
    assert val is not None
    assert objects(val) == [(1, "car", [0, 0, 20, 15])]
    names = [f"images/Validation/frame_{i}.png" for i in range(2)]
    assert [record.file_name for record in val.records] == names
    assert not train.report.remarks()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_boxes_are_shares_of_the_image_as_it_is_shown(orientation: int, suffix: str, tmp_path: Path) -> None:
    made(tmp_path, "0 0.5 0.5 0.5 0.2\n")
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    path = image(tmp_path / "images" / "train" / f"a.{suffix}", orientation=orientation)
    train, _ = read(tmp_path)
    width, height = (40, 30) if orientation < 5 else (30, 40)
    assert tuple(decode_file(path).shape[1:]) == (height, width)
    assert objects(train) == [(1, "a", [0.25 * width, 0.4 * height, 0.5 * width, 0.2 * height])]


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("0 nan 0.5 0.5 0.5", "D09", "expected shares of the image from 0 to 1, found nan"),
        ("0 0.1 0.1 nan 0.2 0.3 0.3", "D09", "expected shares of the image from 0 to 1, found nan"),
        ("0 0.5 0.5 inf 0.5", "D09", "expected shares of the image from 0 to 1, found inf"),
        ("0 20 15 10 6", "D09", "expected shares of the image from 0 to 1, found 20.0"),
        ("0 0.5 0.5 -0.005 0.5", "D07", "bbox width -0.005 must be > 0"),
        ("2 0.5 0.5 0.5 0.5", "D10", "category_id 2 is not in categories"),
        ("-1 0.5 0.5 0.5 0.5", "D10", "category_id -1 is not in categories"),
        ("0.5 0.5 0.5 0.5 0.5", "D10", "category_id must be a 64-bit integer, found 0.5"),
        (
            "0 0.5 0.5 0.5 0.5 0.9",
            "D09",
            f"{COLUMNS}, found 6 number",
        ),
        ("0 0.5 0.5 0.5", "D09", f"{COLUMNS}, found 4 number"),
        ("0", "D09", f"{COLUMNS}, found 1 number"),
        ("cat 0.5 0.5 0.5 0.5", "D09", "expected numbers, found 'cat'"),
        ("0,0.5,0.5,0.5,0.5", "D09", "expected numbers, found '0,0.5,0.5,0.5,0.5'"),
        ("0 0.5 \x00 0.5 0.5", "D09", "expected numbers, found"),
    ],
)
def test_a_line_that_cannot_be_read_is_reported_with_file_and_line(
    line: str, code: str, what: str, tmp_path: Path
) -> None:
    ((found, message),) = problems(made(tmp_path, f"1 0.5 0.5 0.5 0.5\n\n{line}\n"))
    assert found == code
    assert message.startswith(f"labels/train/a.txt:3: {what}")


def test_bad_lines_are_dropped_on_request_and_counted(tmp_path: Path) -> None:
    data = made(tmp_path, "0 0.5 0.5 0.5 0.5\n0 nan 0.5 0.5 0.5\n0 1 2 3\n1 0.5 0.5 0.2 0.2\n")
    train, _ = read(data, Policy(on_bad_data="skip"))
    assert objects(train) == [(1, "a", [10, 7.5, 20, 15]), (1, "b", [16, 12, 8, 6])]
    assert train.report.bad_boxes == 2


def test_labels_in_pixels_are_one_problem(tmp_path: Path) -> None:
    made(tmp_path, "".join(f"0 2{i} 15 10 6\n" for i in range(9)))
    ((code, message),) = problems(tmp_path)
    assert (code, message.endswith("found 20.0 (the same in 8 more of 9 annotations)")) == ("D09", True)


def test_repeated_lines_count_once_and_are_reported(tmp_path: Path) -> None:
    train, _ = read(made(tmp_path, "0 0.5 0.5 0.5 0.5\n" * 3 + "1 0.5 0.5 0.5 0.5\n"))
    assert train.report.objects == 2
    assert train.report.remarks() == ["2 repeated label lines: read once"]


def test_boxes_a_little_outside_are_clipped_and_counted(tmp_path: Path) -> None:
    train, _ = read(made(tmp_path, "0 0.5 0.5 1.01 1\n"))
    assert [record.boxes_xyxy_pixels.tolist() for record in train.records] == [[[0, 0, 40, 30]]]
    assert train.report.clipped == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x80\x03]q\x00", "labels/train/a.txt:1: not text: byte 0x80 is not UTF-8"),
        (b"0 0.5 0.5 0.5 0.5\n\xff\xd8\xff", "labels/train/a.txt:2: not text: byte 0xff is not UTF-8"),
    ],
)
def test_a_binary_label_file_is_an_error(content: bytes, what: str, tmp_path: Path) -> None:
    assert problems(made(tmp_path, content)) == [("D01", what)]


@pytest.mark.parametrize("kind", ["huge", "folder"])
def test_a_label_that_is_no_file_of_a_usual_size_is_an_error(kind: str, tmp_path: Path) -> None:
    label = made(tmp_path) / "labels" / "train" / "a.txt"
    if kind == "huge":
        with label.open("wb") as file:
            file.truncate(MAX_LABEL_BYTES + 1)
    else:
        label.unlink()
        label.mkdir()
    ((code, message),) = problems(tmp_path)
    assert code == "D01"
    assert message.startswith("labels/train/a.txt: the label file cannot be read: ")


@pytest.mark.parametrize(
    ("line", "code"), [("../../secret.jpg", "X01"), ("/etc/hostname.jpg", "X01"), ("images/train/none.jpg", "D17")]
)
def test_a_line_of_a_list_is_named_if_its_image_is_absent_or_leads_out(line: str, code: str, tmp_path: Path) -> None:
    data = made(tmp_path / "data")
    image(tmp_path.parent / "secret.jpg")
    text(tmp_path.parent / "secret.txt", "not a label")
    text(data / "list.txt", f"images/train/a.jpg\n{line}\n")
    text(data / "data.yaml", "train: list.txt\nnames: [a, b]\n")
    ((found, message),) = problems(data)
    assert found == code
    assert message.startswith("list.txt:2: ")


def test_an_image_that_is_a_link_out_of_the_folder_needs_permission(tmp_path: Path) -> None:
    data = made(tmp_path / "data")
    (data / "images" / "train" / "b.jpg").symlink_to(image(tmp_path / "b.jpg"))
    assert [code for code, _ in problems(data)] == ["X01"]
    assert len(read(data, Policy(allow_outside=True))[0]) == 2


def test_a_folder_within_itself_is_read_once(tmp_path: Path) -> None:
    data = made(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (data / "images" / "train" / "again").symlink_to(data / "images" / "train")
    assert len(read(data)[0]) == 1


def test_hidden_files_and_other_texts_are_no_images(tmp_path: Path) -> None:
    data = made(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    for name in ("._a.jpg", ".DS_Store", "notes.md"):
        text(data / "images" / "train" / name, "x")
    text(data / "labels" / "train" / "classes.txt", "a\nb\n")
    train, _ = read(data)
    assert (len(train), train.report.remarks()) == (1, [])


def test_label_files_without_an_image_are_reported(tmp_path: Path) -> None:
    text(made(tmp_path, "0 0.5 0.5 0.5 0.5\n") / "labels" / "train" / "gone.txt", "0 0.5 0.5 0.5 0.5\n")
    assert read(tmp_path)[0].report.remarks() == ["1 label file without an image: not read (labels/train/gone.txt)"]


def test_an_image_in_a_format_that_is_not_decoded_is_an_error_not_left_out(tmp_path: Path) -> None:
    text(made(tmp_path) / "images" / "train" / "b.heic", "ftypheic")
    ((code, message),) = problems(tmp_path)
    assert code == "D18"
    assert message.startswith("images/train/b.heic: ")


def test_key_points_are_not_outlines(tmp_path: Path) -> None:
    names = "names: [person]\nkpt_shape: [2, 3]"
    train, _ = read(made(tmp_path / "a", "0 0.5 0.5 0.5 0.5 0.9 0.9 2 0 0 0\n", names=names))
    assert objects(train) == [(1, "person", [10, 7.5, 20, 15])]
    ((code, message),) = problems(made(tmp_path / "b", "0 0.5 0.5 0.5 0.5 0.9 0.9\n", names=names))
    assert (code, "and 6 numbers of key points, found 7 numbers" in message) == ("D09", True)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("nc: 2", ("class_0", "class_1")),
        ("nc: 2\nnames: [a, 7]", ("a", "7")),
        ("names:\n  1: b\n  0: a", ("a", "b")),
        ("names: {0: a, 3: d}", ("a", "d")),
    ],
)
def test_names_of_classes(names: str, found: tuple[str, ...], tmp_path: Path) -> None:
    assert read(made(tmp_path, "0 0.5 0.5 0.5 0.5\n", names=names))[0].categories.names == found


@pytest.mark.parametrize(
    ("lines", "error", "what"),
    [
        ("train: images/train\nnc: 3\nnames: [a]", ConfigError, "nc is 3, but there are 1 names"),
        ("train: images/train\nnames: 3", ConfigError, "names must be a list"),
        ("train: images/train\nnames: {a: b}", ConfigError, "expected `number: name`, found `a: b`"),
        ("train: images/train\nnc: many", ConfigError, "nc must be the number of classes, found 'many'"),
        ("train: images/train\nnc: 1\nkpt_shape: 3", ConfigError, "kpt_shape must be two numbers"),
        ("train: images/train\nnc: 1\npath: [a]", ConfigError, "path must be a folder"),
        ("train: {a: b}\nnc: 1", ConfigError, "train must be a folder or a list of images"),
        ("train: images/gone\nnc: 1", DataError, "train is images/gone, but there is no such folder or list"),
        ("train: images/train\nnc: 1\nnc: 2", ConfigError, r"key 'nc' is given twice"),
        ("train: !!python/object/apply:os.system [x]\nnc: 1", ConfigError, "is not read"),
    ],
)
def test_a_yaml_file_that_makes_no_sense_is_refused(
    lines: str, error: type[ConfigError | DataError], what: str, tmp_path: Path
) -> None:
    made(tmp_path, names="nc: 1")
    text(tmp_path / "data.yaml", lines)
    with pytest.raises(error, match=what) as caught:
        find_splits(tmp_path)
    assert str(tmp_path / "data.yaml") in caught.value.message


def test_a_validation_split_that_is_absent_is_reported_not_an_error(tmp_path: Path) -> None:
    text(made(tmp_path) / "data.yaml", "train: images/train\nval: ../valid/images\nnc: 1\n")
    assert find_splits(tmp_path).missing == "../valid/images (the key val in data.yaml)"
    text(tmp_path / "data.yaml", "train: images/train\nnc: 1\n")
    assert find_splits(tmp_path).missing == "the key val in data.yaml"


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (made(tmp_path) / "images" / "train" / "a.jpg").unlink()
    assert [code for code, _ in problems(tmp_path)] == ["S01"]


def test_several_folders_share_what_their_names_are_relative_to(tmp_path: Path) -> None:
    for part in ("one", "two"):
        image(tmp_path / part / "images" / "a.jpg")
        text(tmp_path / part / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "data.yaml", "train: [one/images, two/images]\nvalidation: two/images\nnc: 1\n")
    train, val = read(tmp_path)
    assert [record.file_name for record in train.records] == ["one/images/a.jpg", "two/images/a.jpg"]
    assert (train.report.objects, val is not None) == (2, True)


@pytest.mark.parametrize(
    ("image_file", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.b.png", "/images/d/labels/a.b.txt"),
        ("/d/train/a.jpg", "/d/train/a.txt"),
        ("/d/images.old/a.jpg", "/d/images.old/a.txt"),
    ],
)
def test_the_label_file_of_an_image(image_file: str, label: str) -> None:
    assert label_of(image_file) == label


def test_boxes_of_no_size_are_dropped_or_with_strict_refused_with_file_and_line(tmp_path: Path) -> None:
    data = made(tmp_path, "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0 0.5\n")
    assert read(data)[0].report.zero_size == 1
    with pytest.raises(AnnotationError, match=r"labels/train/a\.txt:2: bbox width 0 must be > 0"):
        read(data, Policy(strict=True), ReadAs("yolo"))
