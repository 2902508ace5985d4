"""What the fingerprint of a split sees, part by part."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_detr.data.coco.audit import Policy, examine
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.fingerprint import (
    PARTS,
    differing_parts,
    fingerprint,
    ids_and_sizes,
    with_known_files,
)
from lora_detr.data.coco.records import make_table
from lora_detr.data.coco.source import DataPaths, JsonSource
from lora_detr.data.coco.split import CocoSplit
from tests.unit.data.coco.coco_files import content, load, rotate_names, write, write_images


def replace_boxes(value: dict[str, Any]) -> None:
    for row in value["annotations"]:
        row["bbox"] = [1, 1, 5, 5]


def exchange_photos(value: dict[str, Any]) -> None:
    one, two = value["images"][:2]
    one["file_name"], two["file_name"] = two["file_name"], one["file_name"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "names of classes rotated": (rotate_names, ["categories"]),
    "a class added": (lambda value: value["categories"].append({"id": 9, "name": "cup"}), ["categories"]),
    "all boxes replaced": (replace_boxes, ["annotations"]),
    "a box moved by a millionth": (
        lambda value: value["annotations"][0].update(bbox=[2.000001, 3, 10, 12]),
        ["annotations"],
    ),
    "an annotation dropped": (lambda value: value["annotations"].pop(), ["annotations"]),
    "another class": (lambda value: value["annotations"][0].update(category_id=2), ["annotations"]),
    "a crowd": (lambda value: value["annotations"][0].update(iscrowd=1), ["annotations"]),
    "another area": (lambda value: value["annotations"][0].update(area=60), ["annotations"]),
    "another size": (lambda value: value["images"][0].update(width=41), ["images"]),
    "files exchanged": (exchange_photos, ["file names"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_in_its_part_c08(change: str, tmp_path: Path) -> None:
    apply, parts = CHANGES[change]
    value = content()
    before = load(tmp_path, value).fingerprint
    apply(value)
    assert differing_parts(before, load(tmp_path, value).fingerprint) == parts


def test_an_image_less_is_seen_in_all_that_has_it_c08(tmp_path: Path) -> None:
    found = differing_parts(load(tmp_path, content(3)).fingerprint, load(tmp_path, content(2)).fingerprint)
    assert found == ["images", "file names", "annotations"]


def test_a_folder_in_front_of_all_file_names_changes_nothing(tmp_path: Path) -> None:
    value = content()
    before = load(tmp_path, value).fingerprint
    for row in value["images"]:
        row["file_name"] = f"train/{row['file_name']}"
    assert load(tmp_path, value).fingerprint == before


def test_the_old_fingerprint_is_still_known(tmp_path: Path) -> None:
    records = load(tmp_path, content(2)).records
    assert ids_and_sizes(records) == hashlib.sha256(b"10 40 30\n11 40 30\n").hexdigest()


def verified(folder: Path, verify: Any = "decode") -> CocoSplit:
    found = examine(DataPaths(JsonSource(folder / "train.json", folder), None), Policy(verify))
    assert found.train is not None
    assert not found.faults
    return found.train


def test_a_photo_replaced_by_another_of_its_size_is_seen_where_files_are_read_c08(tmp_path: Path) -> None:
    value = content()
    write(tmp_path, value)
    write_images(tmp_path, value)
    before, unread = verified(tmp_path), verified(tmp_path, "none")
    assert unread.fingerprint["image files"] is None
    assert differing_parts(unread.fingerprint, before.fingerprint) == []
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    after = verified(tmp_path)
    assert differing_parts(before.fingerprint, after.fingerprint) == ["image files"]
    # Images that were not chosen do not count.
    assert before.subset([10, 12]).fingerprint == after.subset([10, 12]).fingerprint


def test_what_files_were_is_remembered_where_they_are_not_read_again(tmp_path: Path) -> None:
    value = content()
    write(tmp_path, value)
    write_images(tmp_path, value)
    before, unread = verified(tmp_path).fingerprint, verified(tmp_path, "none").fingerprint
    assert with_known_files(unread, before) == before
    assert with_known_files(before, unread) == before
    assert with_known_files({**unread, "images": "others"}, before) == {**unread, "images": "others"}
    assert with_known_files(unread, "of an older version") == unread
    assert with_known_files(None, before) is None


def test_bytes_have_a_stated_order(tmp_path: Path) -> None:
    table = make_table(
        tmp_path, [(1, "a", 2, 3)], np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(1, int)
    )
    categories = CategoryMap((1,), ("a",))
    columns = [np.arange(3, dtype=order + kind) for kind in ("i8", "f8") for order in "<>"]
    little, big = ([columns[i], columns[i + 2]] for i in (0, 1))
    found = fingerprint(table, categories, little, None)
    assert found == fingerprint(table, categories, big, None)
    assert tuple(found) == PARTS


def test_a_million_annotations_take_a_moment(tmp_path: Path) -> None:
    count, images = 1_000_000, 10_000
    table = make_table(
        tmp_path,
        [(i, f"{i}.jpg", 640, 480) for i in range(images)],
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(images, np.int64),
    )
    ids = np.arange(count, dtype=np.int64)
    columns = (ids, ids, np.random.default_rng(0).random((count, 4)), ids.astype(float), ids % 7 == 0)
    start = time.process_time()
    fingerprint(table, CategoryMap((1,), ("a",)), columns, None)
    assert time.process_time() - start < 3  # a fraction of a second where nothing else runs
