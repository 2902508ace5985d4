"""Bad data at the command line: each row of the list of faults, as a user meets it before a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_detr.errors import OutputError
from lora_detr.records import run_directory
from tests.cli.conftest import Command, Ended, assert_told
from tests.small_runs import SMALL
from tests.unit.data.coco.coco_files import content, write_images

Change = Callable[[dict[str, Any], Path], None]

TRAIN, VAL = "instances_train.json", "instances_val.json"


@pytest.fixture
def data() -> Path:
    """A data set of three and two images in the current folder, which a test may spoil."""
    folder = Path("data")
    (folder / "annotations").mkdir(parents=True)
    for seed, (split, images) in enumerate((("train", 3), ("val", 2))):
        (folder / split).mkdir()
        value = content(images)
        write_images(folder / split, value, seed)
        _file(folder, split).write_text(json.dumps(value))
    return folder


def _file(data: Path, split: str = "train") -> Path:
    return data / "annotations" / f"instances_{split}.json"


def _change(data: Path, change: Change) -> None:
    value = json.loads(_file(data).read_text())
    change(value, data / "train")
    _file(data).write_text(json.dumps(value))


def _train(loradetr: Command, *words: object) -> Ended:
    few = ("--set", "data.workers=0", "--output-dir", "out")
    return loradetr("train", "--preset", SMALL, "--data", "data", *few, *words)


def _put(section: str, index: int, key: str, value: object) -> Change:
    def change(content: dict[str, Any], images: Path) -> None:
        content[section][index][key] = value

    return change


def _again(section: str, key: str, value: object) -> Change:
    def change(content: dict[str, Any], images: Path) -> None:
        content[section].append({**content[section][-1], key: value})

    return change


def _drop(section: str, index: int, key: str) -> Change:
    def change(content: dict[str, Any], images: Path) -> None:
        del content[section][index][key]

    return change


def _spoil(name: str, data: bytes | None) -> Change:
    def change(content: dict[str, Any], images: Path) -> None:
        (images / name).unlink()
        if data is not None:
            (images / name).write_bytes(data)

    return change


def _no_images(content: dict[str, Any], images: Path) -> None:
    content.update(images=[], annotations=[])


def _absolute(content: dict[str, Any], images: Path) -> None:
    content["images"][0]["file_name"] = str((images / "0.png").resolve())


def _bomb(content: dict[str, Any], images: Path) -> None:
    Image.new("1", (20032, 20032)).save(images / "1.png")
    content["images"][1].update(width=20032, height=20032)


REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "d02": (lambda value, images: value.pop("annotations"), ("missing key 'annotations'",)),  # type: ignore[dict-item]
    "d03": (_again("images", "id", 10), ("images[3] (id=10)", "images[0]")),
    "d04": (_put("annotations", 2, "id", 100), ("annotations[2] (id=100, image_id=12)", "annotations[0]")),
    "d06": (_put("annotations", 1, "image_id", 999), ("annotations[1] (id=101, image_id=999)",)),
    "d07": (_put("annotations", 1, "bbox", [1, 1, -3, 4]), ("(id=101, image_id=11): bbox width -3 must be > 0",)),
    "d09": (_put("annotations", 1, "bbox", [1, 1, 3]), ("(id=101, image_id=11): bbox must be a list of 4", "found 3")),
    "d10": (_put("annotations", 1, "category_id", 99), ("(id=101, image_id=11): category_id 99",)),
    "d12": (_again("categories", "id", 1), ("categories[2] (id=1)", "categories[0]")),
    "d14": (_drop("annotations", 1, "id"), ("annotations[1] (image_id=11): missing key 'id'",)),
    "d15": (_put("annotations", 1, "iscrowd", 2), ("(id=101, image_id=11): iscrowd must be 0 or 1, found 2",)),
    "d17": (_spoil("1.png", None), ("images[1] (id=11)", "train/1.png", "1 of 3 image files are missing")),
    "s01": (_no_images, ("expected at least one image, found 0",)),
    "x01": (_put("images", 1, "file_name", "a/../../x.png"), ("images[1] (id=11)", "leads out of")),
    "x02": (_absolute, ("images[0] (id=10)", "is absolute", "--allow-outside")),
}


@pytest.mark.parametrize("row", REFUSED)
def test_bad_annotations_are_refused_before_a_run(row: str, loradetr: Command, data: Path) -> None:
    change, parts = REFUSED[row]
    _change(data, change)
    ended = _train(loradetr, "--dry-run")
    assert_told(ended, 3, (f"error[{row.upper()}]: {TRAIN}: ", *parts))
    assert not Path("out").exists()


def test_a_truncated_file_is_named_with_line_and_column_d01(loradetr: Command, data: Path) -> None:
    os.truncate(_file(data), 300)
    assert_told(_train(loradetr, "--dry-run"), 3, (f"error[D01]: {TRAIN}:1:296: not valid JSON: Unterminated string",))


UNREADABLE: dict[str, tuple[Change, str]] = {
    "d18": (_spoil("1.png", b"<html>"), "the image cannot be read"),
    "d18 empty": (_spoil("1.png", b""), "the image cannot be read"),
    "d23": (_put("images", 1, "width", 41), "the file is 40x30"),
    "d25": (_bomb, "the limit is 100,000,000"),
}


@pytest.mark.parametrize("row", UNREADABLE)
def test_images_that_cannot_be_used_are_found_by_verify_decode(row: str, loradetr: Command, data: Path) -> None:
    change, part = UNREADABLE[row]
    _change(data, change)
    ended = _train(loradetr, "--dry-run", "--verify", "decode")
    assert_told(ended, 3, (f"error[{row[:3].upper()}]: ", "train/1.png (image id 11)", part, "--on-bad-data skip"))


def test_a_png_with_one_flipped_bit_is_found_by_verify_decode_d19(loradetr: Command, data: Path) -> None:
    path = data / "val" / "1.png"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    ended = _train(loradetr, "--dry-run", "--verify", "decode")
    assert_told(ended, 3, ("error[D18]: ", "val/1.png (image id 11)"))


@pytest.mark.parametrize("changed", [True, False], ids=["differs", "not listed"])
def test_files_are_compared_with_their_checksums_d20(changed: bool, loradetr: Command, data: Path) -> None:
    for split in ("train", "val"):
        paths = sorted((data / split).iterdir())
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
        (data / split / "SHA256SUMS").write_text("".join(lines[1:] if split == "val" and not changed else lines))
    if changed:
        Image.new("RGB", (40, 30)).save(data / "val" / "0.png")
    ended = _train(loradetr, "--dry-run", "--verify", "hash")
    assert_told(ended, 3, ("error[D20]: ", "val/0.png (image id 10)", "SHA256SUMS"))
    assert ("not listed" in ended.err) != changed


def test_without_a_list_the_way_to_one_is_named_d20(loradetr: Command, data: Path) -> None:
    ended = _train(loradetr, "--dry-run", "--verify", "hash")
    assert_told(ended, 3, ("error[D20]: ", "data/train/SHA256SUMS", "sha256sum * > SHA256SUMS"), faults=2)


def test_shared_images_are_a_warning_and_an_error_when_strict_d27(loradetr: Command, data: Path) -> None:
    shutil.copy(data / "train" / "1.png", data / "val" / "1.png")
    ended = _train(loradetr, "--dry-run")
    assert ended.code == 0, ended.err
    assert f"warning: {TRAIN} and {VAL} share 1 of 2 validation images (ids 11 and 11)" in ended.out
    ended = _train(loradetr, "--dry-run", "--strict")
    assert_told(ended, 3, (f"error[D27]: {VAL}: image id 11 (1.png) is image id 11 of {TRAIN}",))


def test_what_is_repaired_is_counted_and_the_run_goes_on(loradetr: Command, data: Path) -> None:
    """D07 without size, D12 names, D14, D16, D29: warned, counted, not fatal."""

    def change(value: dict[str, Any], images: Path) -> None:
        value["annotations"][0]["bbox"] = [30, 3, 20, 5]
        del value["annotations"][1]["area"]
        del value["annotations"][1]["iscrowd"]
        value["annotations"].append({**value["annotations"][0], "id": 7, "bbox": [1, 1, 0, 5]})
        value["annotations"].append({**value["annotations"][0], "id": 8, "bbox": [90, 1, 5, 5]})
        value["images"][1]["file_name"] = "0.png"

    _change(data, change)
    ended = _train(loradetr, "--dry-run")
    assert ended.code == 0, ended.err
    for line in (
        "1 box without width or height: dropped",
        "1 box outside their image: dropped",
        "1 box clipped to their image",
        "1 annotation without area: width x height used",
        "1 annotation without iscrowd: 0 used",
        "1 image shares a file with another image",
    ):
        assert line in ended.out
    assert _train(loradetr, "--dry-run", "--strict").code == 3


def test_absolute_names_are_allowed_on_request_x02(loradetr: Command, data: Path) -> None:
    _change(data, _absolute)
    assert _train(loradetr, "--dry-run", "--allow-outside").code == 0


def test_both_splits_are_told_together_and_all_problems_are_kept(loradetr: Command, data: Path) -> None:
    def change(value: dict[str, Any], images: Path) -> None:
        value["annotations"] = [{**value["annotations"][0], "id": i, "category_id": 99 + i} for i in range(30)]

    _change(data, change)
    _file(data, "val").write_text("[]")
    ended = _train(loradetr)
    assert_told(ended, 3, ("annotations[19]", "... and 11 more", "31 problems in ", "(all: out/data_report.json)"), 20)
    problems = json.loads(Path("out/data_report.json").read_text())["problems"]
    assert [problem["code"] for problem in problems] == ["D10"] * 30 + ["D02"]
    assert problems[-1]["text"] == f"{VAL}: the root must be an object, found a list"
    assert [path.name for path in Path("out").iterdir()] == ["data_report.json"]
    _file(data).write_text(json.dumps(content(3)))
    _file(data, "val").write_text(json.dumps(content(2)))
    ended = _train(loradetr, "--max-steps", 1)  # the folder is still free
    assert ended.code == 0, ended.err
    assert "train" in json.loads(Path("out/data_report.json").read_text())


def test_a_refused_run_takes_no_number(loradetr: Command, data: Path) -> None:
    _change(data, _put("annotations", 1, "category_id", 99))
    for _ in range(2):
        ended = loradetr("train", "--preset", SMALL, "--data", "data")
        assert_told(ended, 3, ("error[D10]", "runs/small-1/data_report.json"))
    assert [path.name for path in Path("runs").iterdir()] == ["small-1"]


def test_only_crowd_regions_train_as_background_and_measure_nothing_n09(loradetr: Command, data: Path) -> None:
    for split in ("train", "val"):
        value = json.loads(_file(data, split).read_text())
        for row in value["annotations"]:
            row["iscrowd"] = 1
        _file(data, split).write_text(json.dumps(value))
    ended = _train(loradetr, "--max-steps", 1)
    assert ended.code == 0, ended.err
    assert "3 crowd regions: not trained on, ignored in evaluation" in ended.out
    loss = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert 0 < loss < 1e4
    ended = loradetr("eval", "out", "--workers", 0)
    assert ended.code == 0, ended.err
    assert "AP -  " in ended.out
    assert "-: nothing to measure" in ended.out


def test_a_place_that_cannot_be_written_does_not_hide_what_is_wrong(
    loradetr: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OutputError(f"{path}: cannot be written")

    monkeypatch.setattr(run_directory, "write_file", refuse)
    _change(data, _put("annotations", 1, "category_id", 99))
    ended = _train(loradetr)
    assert_told(ended, 3, ("error[D10]", "1 problem in "))
    assert "data_report" not in ended.err
    assert not Path("out").exists()


def test_skipped_images_are_named_once_and_counted_d18(loradetr: Command, data: Path) -> None:
    (data / "train" / "1.png").write_bytes(b"<html>")
    (data / "val" / "0.png").write_bytes(b"")
    skip = ("--on-bad-data", "skip", "--epochs", 2, "--set", "train.batch_size=3", "--set", "evaluation.every=1")
    ended = _train(loradetr, *skip)
    assert ended.code == 0, ended.err
    assert ended.out.count("train/1.png (image id 11): the image cannot be read") == 1
    assert ended.out.count("val/0.png (image id 10): the image cannot be read") == 1
    assert "images cannot be read and were skipped so far" in ended.out
    report = json.loads(Path("out/data_report.json").read_text())
    assert {problem["code"] for problem in report["unreadable"]} == {"D18"}
    ended = loradetr("eval", "out", "--workers", 0)
    assert ended.code == 0, ended.err
    assert "1 image cannot be read and was left out" in ended.out
    ended = loradetr("eval", "out", "--json", "--workers", 0)
    assert json.loads(ended.out)["left_out"] == 1
    assert_told(loradetr("eval", "out", "--on-bad-data", "error"), 3, ("error[D18]: ", "val/0.png (image id 10)"))


def test_verified_images_are_counted_when_they_are_skipped_d18(loradetr: Command, data: Path) -> None:
    (data / "train" / "1.png").write_bytes(b"<html>")
    ended = _train(loradetr, "--dry-run", "--verify", "decode", "--on-bad-data", "skip")
    assert ended.code == 0, ended.err
    assert "1 image that cannot be read: others take their place in training" in ended.out


def test_ids_beyond_2_53_change_neither_ap_nor_on_the_way(
    loradetr: Command, learned_run: Path, learned_data: Path
) -> None:
    folder = learned_data.parent
    value = json.loads((folder / "two.json").read_text())
    for row in value["images"]:
        row["id"] += 2**53
    for row in value["annotations"]:
        row["image_id"] += 2**53
    Path("far.json").write_text(json.dumps(value))
    lines = [f"{split}_annotations: far.json\n{split}_images: {folder / 'pictures'}\n" for split in ("train", "val")]
    Path("far.yaml").write_text("".join(lines))
    found = {}
    for data in (learned_data, "far.yaml"):
        ended = loradetr("eval", learned_run, "--data", data, "--json", "--workers", 0, "--predictions", "found.json")
        assert ended.code == 0, ended.err
        results = json.loads(Path("found.json").read_text())
        found[data] = (json.loads(ended.out), {row["image_id"] for row in results})
    (near, near_ids), (far, far_ids) = found.values()
    assert near["AP"] > 0.1
    assert far == near
    assert far_ids == {image_id + 2**53 for image_id in near_ids} == {row["id"] for row in value["images"]}
