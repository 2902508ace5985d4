"""What a path is taken for, and what is read of public sets in their own layouts, against boxes computed by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lora_detr.data.coco.audit import Policy, audit
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.layouts.registry import LAYOUTS, find_splits, format_named
from lora_detr.errors import ConfigError, DataError
from tests.conftest import REPOSITORY
from tests.unit.data.coco.coco_files import content, write, write_images
from tests.unit.data.layouts.sets import MADE, cvat_coco, label_studio, objects, read, roboflow_coco, roboflow_yolo


@pytest.mark.parametrize("name", MADE)
def test_a_set_is_recognised_and_said_to_be(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = MADE[name](tmp_path)
    caplog.set_level(logging.INFO, "lora_detr")
    assert audit(data, verify="decode").problems == ()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{data}: read as {name.split()[0]} (")


@pytest.mark.parametrize("name", MADE)
def test_naming_the_layout_gives_the_same_as_recognising_it(name: str, tmp_path: Path) -> None:
    data = MADE[name](tmp_path)
    assert read(data)[0].fingerprint == read(data, how=ReadAs(name.split()[0]))[0].fingerprint


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_is_no_other_layout(name: str, layout: str, tmp_path: Path) -> None:
    data = MADE[name](tmp_path)
    assert LAYOUTS[layout].recognises(data) == (layout == name.split()[0])
    if layout != name.split()[0]:
        with pytest.raises((DataError, ConfigError), match=r"expected|missing|unknown key"):
            find_splits(data, ReadAs(layout))


@pytest.mark.parametrize("where", ["absent", "a pipe", "an empty folder", "a text file"])
def test_nothing_is_recognised_where_nothing_is(where: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    if where == "an empty folder":
        path.mkdir()
    elif where == "a text file":
        path.write_text("train: that is all")
    assert [name for name, layout in LAYOUTS.items() if layout.recognises(path)] == []


def test_two_layouts_in_one_folder_are_refused_with_both_names(tmp_path: Path) -> None:
    roboflow_coco(tmp_path)
    roboflow_yolo(tmp_path)
    with pytest.raises(ConfigError, match=r"can be read as roboflow .* and yolo") as caught:
        find_splits(tmp_path)
    assert caught.value.remedy == "choose with --data-format roboflow or --data-format yolo"
    assert find_splits(tmp_path, ReadAs("roboflow")).train.name == "train/_annotations.coco.json"


def test_a_yaml_file_of_four_lines_is_no_yolo(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    (tmp_path / "pictures").mkdir()
    write(tmp_path, content(), "a.json")
    file.write_text("train_annotations: a.json\ntrain_images: pictures\n")
    assert find_splits(file).train.path == tmp_path / "a.json"
    file.write_text("train_annotations: a.json\ntrain: x\nnames: [a]\n")
    with pytest.raises(ConfigError, match="unknown key 'train'"):
        find_splits(file)


def test_a_coco_folder_says_nothing_and_keeps_its_images_beside_other_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "annotations").mkdir()
    for folder in (tmp_path / "train", tmp_path / "images" / "train"):
        folder.mkdir(parents=True)
        write_images(folder, content())
    write(tmp_path / "annotations", content(), "instances_train.json")
    caplog.set_level(logging.INFO, "lora_detr")
    assert find_splits(tmp_path).train.images == tmp_path / "train"
    assert caplog.records == []


def test_an_unknown_format_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"--data-format yol: must be one of auto, coco, .*; did you mean 'yolo'\?"):
        format_named("yol")


def test_every_layout_has_a_row_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "own_data.md").read_text(encoding="utf-8")
    assert [name for name in LAYOUTS if f"| `{name}` |" not in page] == []


def test_roboflow_keeps_ids_and_the_category_without_objects(tmp_path: Path) -> None:
    train, val = read(roboflow_coco(tmp_path))
    assert objects(train) == [(0, "head", [2, 3, 10.5, 12]), (1, "helmet", [2, 3, 10.5, 12])]
    assert train.categories.names_by_id == {0: "hard-hats", 1: "head", 2: "helmet"}
    assert val is not None
    assert (len(val), val.report.file) == (1, "valid/_annotations.coco.json")
    assert any("hard-hats" in warning for warning in audit(tmp_path).warnings)


def test_sizes_that_label_studio_leaves_out_are_those_of_the_turned_images(tmp_path: Path) -> None:
    train, val = read(label_studio(tmp_path))
    assert val is None
    assert [(record.width, record.height) for record in train.records] == [(40, 30), (30, 40)]
    assert [record.boxes_xyxy_pixels.tolist() for record in train.records] == [
        [[1.5, 2.0, 21.5, 27.0]],
        [[1.5, 2.0, 21.5, 27.0]],
    ]


def test_file_names_of_label_studio_may_lack_the_folder(tmp_path: Path) -> None:
    file = label_studio(tmp_path) / "result.json"
    file.write_text(file.read_text().replace("images/", ""))
    assert [record.file_name for record in read(tmp_path)[0].records] == ["0-a.jpg", "1-a.jpg"]


def test_subsets_of_cvat_are_the_splits_or_one_without_a_name_is_the_training_split(tmp_path: Path) -> None:
    train, val = read(cvat_coco(tmp_path / "two"))
    assert val is not None
    assert (objects(train), objects(val)) == ([(1, "car", [1, 2, 3, 4])], [(1, "car", [1, 2, 3, 4])])
    one = cvat_coco(tmp_path / "one")
    (one / "annotations" / "instances_Validation.json").unlink()
    (one / "annotations" / "instances_Train.json").rename(one / "annotations" / "instances_default.json")
    (one / "images" / "Train").rename(one / "images" / "default")
    paths = find_splits(one)
    assert (paths.train.images.name, paths.val) == ("default", None)


@pytest.mark.parametrize("name", ["roboflow", "label-studio", "cvat"])
def test_a_file_name_that_leads_out_of_its_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    data = MADE[name](tmp_path / "data")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"no image")
    file = next(path for path in sorted(data.rglob("*.json")) if "rain" in str(path) or path.name == "result.json")
    text = file.read_text()
    before = text.split('"file_name": "')[1].split('"')[0]
    file.write_text(text.replace(before, "../../../secret.jpg"))
    problems = audit(data).problems
    assert [problem.code for problem in problems][:1] == ["X01"]
    assert not any("cannot be read" in problem.text for problem in problems)


def test_an_image_whose_size_cannot_be_read_is_an_error_or_left_out(tmp_path: Path) -> None:
    data = label_studio(tmp_path)
    (data / "images" / "1-a.jpg").write_bytes(b"\xff\xd8 cut")
    (problem,) = audit(data).problems
    assert problem.code == "D18"
    assert problem.text.startswith("result.json: images[1] (id=1): ")
    train, _ = read(data, Policy(on_bad_data="skip"))
    assert [record.id for record in train.records] == [0]
    assert train.report.unreadable_files == ("images/1-a.jpg",)
    assert "1 image file that cannot be read: left out on request (images/1-a.jpg)" in train.report.remarks()
