"""Good annotation files: what is kept, in which order, and with which labels."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from lora_detr.data.coco.categories import COCO_NAMES, CategoryMap
from lora_detr.data.coco.layout import MAX_YAML_BYTES, PATH_KEYS
from lora_detr.data.coco.split import load_split
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import CheckpointError, ConfigError, DataError, LoraDetrError
from tests.unit.data.coco.coco_files import content, load, write, write_images


def test_any_category_ids_are_mapped_d11(tmp_path: Path) -> None:
    value = content(4)
    value["categories"] = [{"id": i, "name": f"c{i}"} for i in (7, 3, 10**12, -1)]
    for row, category_id in zip(value["annotations"], (7, 3, 10**12, -1), strict=True):
        row["category_id"] = category_id
    categories = load(tmp_path, value).categories
    assert categories.ids == (-1, 3, 7, 10**12)
    assert categories.names == ("c-1", "c3", "c7", f"c{10**12}")
    assert [categories.label_of(i) for i in categories.ids] == [0, 1, 2, 3]
    assert CategoryMap.from_json(categories.to_json()) == categories


@pytest.mark.parametrize("value", [None, {}, {"ids": [1], "names": []}, {"ids": ["1"], "names": ["a"]}, {"ids": 1}])
def test_category_map_refuses_other_json(value: object) -> None:
    with pytest.raises(CheckpointError, match="category map"):
        CategoryMap.from_json(value)


def test_coco91_uses_ids_as_labels() -> None:
    categories = CategoryMap.coco91({1: "person", 90: "toothbrush"})
    assert len(COCO_NAMES) == 80
    assert categories.num_classes == 91
    assert [categories.label_of(i) for i in (1, 90)] == [1, 90]
    assert categories.ids[90] == 90
    assert categories.names[12] == "N/A"
    assert categories.names_by_id == COCO_NAMES


@pytest.mark.parametrize("names", [{}, {1: "cell"}, {12: "person"}, {1: "person", 91: "x"}])
def test_coco91_refuses_other_data(names: dict[int, str]) -> None:
    with pytest.raises(ConfigError, match="coco91") as caught:
        CategoryMap.coco91(names)
    assert "--num-classes auto" in str(caught.value)


def test_unknown_category_id() -> None:
    with pytest.raises(DataError, match="category id 5"):
        CategoryMap.from_categories({1: "a"}).label_of(5)


def test_with_categories_refuses_unknown_objects(tmp_path: Path) -> None:
    split = load(tmp_path, content())
    assert split.with_categories(CategoryMap((2, 1), ("plate", "cell"))).categories.label_of(2) == 0
    with pytest.raises(DataError, match="1 category is not among the model's: 2 'plate'"):
        split.with_categories(CategoryMap((1,), ("cell",)))


def test_crowd_and_empty_images_are_kept_apart(tmp_path: Path) -> None:
    value = content(3)
    value["annotations"][0]["iscrowd"] = 1
    del value["annotations"][1]
    split = load(tmp_path, value)
    assert [len(record.category_ids) for record in split.records] == [0, 0, 1]
    assert (split.report.crowd, split.report.objects, split.report.images_without_objects) == (1, 1, 2)
    assert split.ground_truth.crowd.tolist() == [True, False]
    assert split.report.to_json()["crowd"] == 1


def test_order_in_the_file_does_not_matter_r6(tmp_path: Path) -> None:
    value = content(6)
    value["annotations"] += [{**row, "id": row["id"] + 100, "bbox": [1, 1, 5, 5]} for row in value["annotations"]]
    first = load(tmp_path, value)
    for seed in range(5):
        for key in ("images", "annotations", "categories"):
            random.Random(seed).shuffle(value[key])
        again = load(tmp_path, value)
        assert again.fingerprint == first.fingerprint
        assert again.image_ids == first.image_ids
        for a, b in zip(again.records, first.records, strict=True):
            assert a.file_name == b.file_name
            assert np.array_equal(a.boxes_xyxy_pixels, b.boxes_xyxy_pixels)
            assert np.array_equal(a.category_ids, b.category_ids)
        assert np.array_equal(again.ground_truth.boxes_xywh_pixels, first.ground_truth.boxes_xywh_pixels)


def test_subset(tmp_path: Path) -> None:
    split = load(tmp_path, content(5))
    part = split.subset([13, 11])
    assert part.image_ids == (11, 13)
    assert part.ground_truth.image_ids.tolist() == [11, 13]
    with pytest.raises(DataError, match="99"):
        split.subset([11, 99])


def test_real_bccd_has_two_zero_boxes(real_data: Path) -> None:
    paths = find_splits(real_data / "bccd")
    split = load_split(paths.train)
    assert (split.report.zero_size, split.report.objects, split.report.images) == (2, 3941, 292)
    assert split.categories.names == ("RBC", "WBC", "Platelets")


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            write((root / name).parent, content(), Path(name).name)
        else:
            (root / name).mkdir()
    return root


@pytest.mark.parametrize("year", ["", "2017"])
def test_find_splits_in_a_folder(tmp_path: Path, year: str) -> None:
    root = _folder(tmp_path, f"annotations/instances_train{year}.json", f"train{year}")
    paths = find_splits(root)
    assert paths.train.path == root / "annotations" / f"instances_train{year}.json"
    assert paths.train.images == root / f"train{year}"
    assert paths.val is None
    assert "instances_val2017.json" in paths.missing
    paths = find_splits(_folder(root, "annotations/instances_val.json", "val2017"))
    assert (paths.val.images, paths.missing) == (root / "val2017", "")


def test_find_splits_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing there"):
        find_splits(tmp_path / "absent")
    with pytest.raises(DataError, match=r"expected annotations/instances_train2017\.json .*, found nothing"):
        find_splits(tmp_path)
    with pytest.raises(DataError, match="expected images in train2017/ or train/, found annotations"):
        find_splits(_folder(tmp_path, "annotations/instances_train.json"))


def test_find_splits_in_yaml(tmp_path: Path) -> None:
    _folder(tmp_path, "a/train.json", "pictures")
    file = tmp_path / "data.yaml"
    file.write_text("train_annotations: a/train.json\ntrain_images: pictures\n")
    paths = find_splits(file)
    assert (paths.train.path, paths.val) == (tmp_path / "a" / "train.json", None)
    assert paths.missing


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("[1]", ConfigError, "expected a mapping"),
        ("{a: [", ConfigError, r"data\.yaml:1:6: not valid YAML.*\n.*train_annotations"),
        ("train_anotations: x", ConfigError, "did you mean 'train_annotations'"),
        ("train_annotations: a/train.json", ConfigError, "missing key 'train_images'"),
        ("train_annotations: 3\ntrain_images: pictures", ConfigError, "must be a path"),
        ("train_annotations: a/train.json\ntrain_images: gone", DataError, "no such folder"),
        ("train_annotations: !!python/object/apply:os.system [x]", ConfigError, r"data\.yaml:1:20: tag .* is not read"),
        ("train_images: 010", ConfigError, r"data\.yaml:1:15: '010' begins with 0"),
        ("train_images: a\ntrain_images: b", ConfigError, r"data\.yaml:2:1: key 'train_images' .* lines 1 and 2"),
        ("train_images: &here a\nval_images: *here", ConfigError, r"data\.yaml:1:15: anchor '&here' is not read"),
        ("", ConfigError, "missing key 'train_annotations'"),
    ],
)
def test_find_splits_refuses_bad_yaml(tmp_path: Path, text: str, error: type[LoraDetrError], match: str) -> None:
    _folder(tmp_path, "a/train.json", "pictures")
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(error, match=match) as caught:
        find_splits(file)
    assert str(file) in caught.value.message
    assert caught.value.remedy


def test_yaml_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_bytes(b"train_images: \xff")
    with pytest.raises(ConfigError, match=r"data\.yaml: not UTF-8 at byte 14"):
        find_splits(file)


@pytest.mark.parametrize("images", [1, 2000])
def test_an_annotation_file_behind_data_is_refused_with_what_to_write(tmp_path: Path, images: int) -> None:
    file = write(tmp_path, content(images))
    with pytest.raises(ConfigError) as caught:
        find_splits(file)
    is_large = file.stat().st_size > MAX_YAML_BYTES
    assert is_large == (images > 1)
    assert ("expected a YAML file of paths, found" if is_large else "unknown key 'images'") in caught.value.message
    assert all(f"{key}: F" in caught.value.remedy for key in PATH_KEYS)


def test_a_large_file_that_is_no_json_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("# remark\n" * MAX_YAML_BYTES)
    with pytest.raises(ConfigError, match=r"data\.yaml: expected a YAML file of paths, found 900000 bytes"):
        find_splits(file)


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            {"train/coco.json": "train", "valid/coco.json": "valid"},
            [
                *("train_annotations: train/coco.json", "train_images: train"),
                *("val_annotations: valid/coco.json", "val_images: valid"),
            ],
        ),
        ({"all.json": "images"}, ["train_annotations: all.json", "train_images: images"]),
        (
            {"labels/train.json": "photos/a", "labels/val.json": "photos/b"},
            [
                *("train_annotations: labels/train.json", "train_images: photos/a"),
                *("val_annotations: labels/val.json", "val_images: photos/b"),
            ],
        ),
    ],
)
def test_coco_files_elsewhere_are_named_with_the_lines_to_write(
    files: dict[str, str], lines: list[str], tmp_path: Path
) -> None:
    for number, (name, images) in enumerate(files.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        value = content()
        for row in value["images"]:
            row["file_name"] = f"{number}-{row['file_name']}"
        (tmp_path / images).mkdir(parents=True, exist_ok=True)
        write_images(tmp_path / images, value)
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(DataError, match="expected annotations/instances_train2017") as caught:
        find_splits(tmp_path)
    remedy, *shown = caught.value.remedy.splitlines()
    assert (
        remedy == f"it has COCO files elsewhere: write {tmp_path / 'data.yaml'} with these lines, and give it as --data"
    )
    assert [line.strip() for line in shown] == lines
    (tmp_path / "data.yaml").write_text("\n".join(map(str.strip, shown)))
    assert find_splits(tmp_path / "data.yaml").train.path.is_file()  # they work as they are


def test_an_address_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="is an address"):
        find_splits(Path("https://example.com/data"))
