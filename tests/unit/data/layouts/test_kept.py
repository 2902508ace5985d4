"""What was read of many small files is kept, and never taken for files that have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_detr.data.coco import kept
from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.coco.split import CocoSplit
from tests.unit.data.layouts.sets import MADE, cvat_yolo, image, objects, read, roboflow_yolo, text, voc2007


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of splits of its own."""
    path = tmp_path / "kept"
    monkeypatch.setattr(kept, "kept_in", lambda: path)
    return path


def read_without_loading(data: Path, monkeypatch: pytest.MonkeyPatch, how: ReadAs | None = None) -> CocoSplit:
    with monkeypatch.context() as patch:
        patch.setattr(kept, "load_split", lambda *_, **__: pytest.fail("read again"))
        return read(data, how=how)[0]


@pytest.mark.parametrize("name", MADE)
def test_what_is_kept_is_what_was_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MADE[name](tmp_path / "data")
    first = read(data)[0]
    again = read_without_loading(data, monkeypatch)
    assert again.fingerprint == first.fingerprint
    assert (again.report, again.categories, again.annotations_path) == (
        first.report,
        first.categories,
        first.annotations_path,
    )
    for a, b in zip(again.records, first.records, strict=True):
        assert (a.path, a.id, a.width) == (b.path, b.id, b.width)
        assert np.array_equal(a.boxes_xyxy_pixels, b.boxes_xyxy_pixels)
        assert a.boxes_xyxy_pixels.dtype == b.boxes_xyxy_pixels.dtype


def test_a_coco_folder_is_read_anew_each_time(tmp_path: Path, folder: Path, shapes_tiny: Path) -> None:
    read(shapes_tiny)
    assert not folder.exists()


def _edit(data: Path) -> None:
    label = data / "train" / "labels" / "train0.txt"
    before = label.stat()
    label.write_text("0 0.5 0.5 0.25 0.2\n1 0.25 0.5 0.5 1\n")  # of the same length
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a label with the size and time it had": _edit,
    "a new label file": lambda data: text(data / "train" / "labels" / "train9.txt", "0 0.5 0.5 0.1 0.1"),
    "a label file that is gone": lambda data: (data / "train" / "labels" / "train0.txt").unlink(),
    "a new image": lambda data: image(data / "train" / "images" / "new.jpg"),
    "an image of another size": lambda data: Image.new("RGB", (50, 40)).save(data / "train" / "images" / "train0.jpg"),
    "names of classes": lambda data: text(data / "data.yaml", "train: train/images\nnames: [helmet, head]\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, tmp_path: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    before = read(data)[0]
    CHANGES[change](data)
    after = read(data)[0]
    assert (after.fingerprint, after.report) != (before.fingerprint, before.report)


def test_a_change_of_a_listed_image_is_seen(tmp_path: Path) -> None:
    data = cvat_yolo(tmp_path / "data")
    before = read(data)[0]
    text(data / "labels" / "Train" / "frame_1.txt", "1 0.5 0.5 0.5 0.5\n")
    assert len(objects(read(data)[0])) == len(objects(before)) + 1


def test_other_settings_are_read_again(tmp_path: Path, folder: Path) -> None:
    data = voc2007(tmp_path / "data")
    found = [read(data, how=how)[0] for how in (ReadAs(), ReadAs(voc_offset=0), ReadAs(voc_difficult="keep"))]
    assert len({str(split.fingerprint) for split in found}) == 3
    read(data, Policy(on_bad_data="skip"))
    assert len(list(folder.iterdir())) == 8  # two splits each


def test_classes_of_the_training_split_are_part_of_the_validation_split(tmp_path: Path) -> None:
    data = voc2007(tmp_path / "data")
    assert objects(read(data)[1])[0][1] == "person"  # type: ignore[arg-type]
    file = data / "VOCdevkit" / "VOC2007" / "Annotations" / "000007.xml"
    file.write_text(file.read_text().replace("car", "zebra"))
    assert read(data)[1].categories.names == ("chair", "person", "zebra")  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_file_is_read_again(damage: bytes | None, tmp_path: Path, folder: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    before = read(data)[0]
    for path in folder.iterdir():
        content = path.read_bytes()
        flipped = bytes(byte ^ (i == len(content) // 2) for i, byte in enumerate(content))
        path.write_bytes(flipped if damage is None else damage)
    assert read(data)[0].fingerprint == before.fingerprint


def test_bad_data_is_never_kept(tmp_path: Path, folder: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    text(data / "train" / "labels" / "train0.txt", "7 7 7 7 7")
    for _ in range(2):
        with pytest.raises(Exception, match=r"train0\.txt:1"):
            read(data)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, folder: Path) -> None:
    folder.write_text("in the way")
    assert len(read(roboflow_yolo(tmp_path / "data"))[0]) == 2


def test_no_more_than_some_are_kept(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", 3)
    for i in range(3):
        read(roboflow_yolo(tmp_path / f"data{i}"))
    assert len(list(folder.iterdir())) == 3
