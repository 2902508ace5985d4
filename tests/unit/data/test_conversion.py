"""Writing a data set as a COCO folder: the same numbers, images as links, and twins in one split."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from lora_detr.data import conversion
from lora_detr.data.coco.audit import Policy, audit
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.conversion import Converted, convert
from lora_detr.errors import ConfigError, DataError, OutputError
from tests.unit.data.layouts.sets import MADE, image, objects, pets, read, roboflow_yolo, text


def converted(data: Path, output: Path, share: float | None = None, **options: object) -> Converted:
    policy = options.pop("policy", Policy())
    return convert(data, output, how=ReadAs(), policy=policy, share=share, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MADE)
def test_a_converted_set_is_the_same_data(name: str, tmp_path: Path) -> None:
    data, output = MADE[name](tmp_path / "data"), tmp_path / "out"
    done = converted(data, output)
    before, after = read(data), read(output)
    assert audit(output, verify="decode").problems == ()
    for old, new in zip(before, after, strict=True):
        if old is None:
            assert new is None
            continue
        assert new is not None
        # The names are the same but for folders that all of them are in.
        old_parts, new_parts = dict(old.fingerprint), dict(new.fingerprint)
        assert old_parts == new_parts
    assert done.counts["train"] == (len(before[0]), len(before[0].ground_truth.areas))
    assert {path.name for path in output.iterdir()} == {"annotations", *done.counts}


def test_images_are_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = roboflow_yolo(tmp_path / "data")
    original = data / "train" / "images" / "train0.jpg"
    done = converted(data, tmp_path / "linked")
    assert (done.linked, done.copied) == (4, 0)
    assert (tmp_path / "linked" / "train" / "train0.jpg").samefile(original)
    done = converted(data, tmp_path / "copied", copy=True)
    assert (done.linked, done.copied) == (0, 4)
    copy = tmp_path / "copied" / "train" / "train0.jpg"
    assert (copy.samefile(original), copy.read_bytes() == original.read_bytes()) == (False, True)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert converted(data, tmp_path / "elsewhere").copied == 4


def many(root: Path, count: int = 12) -> Path:
    """Write a set without a validation split: each picture also smaller, darker, and copied under another name."""
    for i in range(count):
        first = Image.open(image(root / "images" / f"{i}.png", 9, 8)).resize((256, 192))
        first.save(root / "images" / f"{i}.png")
        first.resize((128, 96)).save(root / "images" / f"{i}-small.jpg", quality=70)
        ImageEnhance.Brightness(first).enhance(0.8).save(root / "images" / f"z{i}-dark.png")
        (root / "images" / f"y{i}.png").write_bytes((root / "images" / f"{i}.png").read_bytes())
    text(root / "labels" / "0.txt", "0 0.5 0.5 0.5 0.5\n")
    text(root / "data.yaml", "train: images\nnames: [a]\n")
    return root


def test_twins_never_part(tmp_path: Path) -> None:
    data = many(tmp_path / "data")
    for seed in range(3):
        output = tmp_path / f"out{seed}"
        done = converted(data, output, 0.25, seed=seed)
        assert done.counts["val"][0] == 12
        train, val = read(output)
        assert val is not None
        pictures = [
            {name.lstrip("yz").partition(".")[0].partition("-")[0] for name in split.records.file_names()}
            for split in (train, val)
        ]
        assert (len(pictures[0]), len(pictures[1]), pictures[0] & pictures[1]) == (9, 3, set())
        assert not [warning for warning in audit(output, verify="decode").warnings if "share" in warning]


def test_a_division_depends_on_the_seed_alone(tmp_path: Path) -> None:
    data = many(tmp_path / "data", 6)
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        converted(data, tmp_path / name, 0.5, seed=seed)
        rows = json.loads((tmp_path / name / "annotations" / "instances_val.json").read_text())["images"]
        chosen.append([row["file_name"] for row in rows])
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_set_that_shows_one_thing_cannot_be_divided(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i, 9, 9)).save(tmp_path / "images" / f"{i}.png")
    text(tmp_path / "data.yaml", "train: images\nnames: [a]\n")
    with pytest.raises(DataError, match=r"data\.yaml \(train\): 3 images cannot be divided: all show almost the same"):
        converted(tmp_path, tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_decoded_ends_a_division_or_goes_along(tmp_path: Path) -> None:
    data = many(tmp_path / "data", 3)
    file = data / "images" / "0.png"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"0\.png: the image cannot be read"):
        converted(data, tmp_path / "out", 0.5)
    assert converted(data, tmp_path / "out", 0.5, policy=Policy(on_bad_data="skip")).linked == 12


def test_a_division_beside_a_validation_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a validation split already, data\.yaml \(val\)"):
        converted(roboflow_yolo(tmp_path / "data"), tmp_path / "out", 0.2)


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    (tmp_path / "out").mkdir()
    converted(data, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="is not empty; nothing was touched"):
        converted(data, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        converted(data, data / "data.yaml")
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    data = roboflow_yolo(tmp_path / "data")
    monkeypatch.setattr(conversion.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left on device"):
        converted(data, tmp_path / "out", copy=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_names_that_lead_out_get_a_place_inside(tmp_path: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    for folder in ("x", "y"):
        image(tmp_path / folder / "a.jpg")
    text(data / "list.txt", f"../x/a.jpg\n{tmp_path}/y/a.jpg\ntrain/images/train0.jpg\n")
    text(data / "data.yaml", "train: list.txt\nnames: [head, helmet]\n")
    converted(data, tmp_path / "out", policy=Policy(allow_outside=True))
    train, _ = read(tmp_path / "out")
    assert train.records.file_names() == ["a.jpg", "2-a.jpg", "train/images/train0.jpg"]
    assert len(objects(train)) == 2


def test_what_was_left_out_is_reported(tmp_path: Path) -> None:
    done = converted(pets(tmp_path / "data"), tmp_path / "out")
    assert "annotations: 1 image without an XML file: left out (Bombay_3.jpg)" in [
        remark.replace("data: ", "annotations: ") for remark in done.remarks
    ]
    assert done.missing == "valid/ with XML files"
