"""Data sets of other formats at the command line: one of YOLO and one of Pascal VOC through every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command, assert_told
from tests.small_runs import SMALL
from tests.unit.data.layouts.sets import MADE, image, read, roboflow_yolo, text, voc2007, xml

FEW = ("--set", "data.workers=0", "--max-steps", 2, "--epochs", 9, "--set", "train.schedule.warmup_steps=0")


@pytest.fixture(params=["yolo of Roboflow", "voc of Roboflow"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data set of either format with two splits of at least two images."""
    root = MADE[request.param](tmp_path / "data")
    if request.param.startswith("voc"):
        for split in ("train", "valid"):
            xml(root / split / "more.xml", ["dog 3 3 20 20"])
            image(root / split / "more.jpg")
    return root


def test_train_eval_resume_and_strip(loradetr: Command, data: Path, tmp_path: Path) -> None:
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--output-dir", "run")
    assert (ended.code, ended.err) == (0, "")
    assert f"info: {data}: read as " in ended.out
    settings = yaml.safe_load(Path("run/config.yaml").read_text())["data"]
    assert (settings["format"], settings["voc_offset"]) == ("auto", "auto")
    ended = loradetr("eval", "run", "--json", "--device", "cpu", "--workers", 0)
    assert ended.code == 0
    own = json.loads(ended.out)
    name = "yolo" if (data / "data.yaml").exists() else "voc"
    again = loradetr("eval", "run", "--data", data, "--data-format", name, "--json", "--device", "cpu", "--workers", 0)
    assert json.loads(again.out) == own
    assert {row["category_id"] for row in own["per_class"]} == ({0, 1} if name == "yolo" else {1, 2})
    ended = loradetr("train", "--resume", "run", "--max-steps", 3)
    assert (ended.code, ended.err) == (0, "")
    assert loradetr("strip", "run", "--output", "model.safetensors").code == 0


def test_resuming_on_changed_labels_is_refused(loradetr: Command, data: Path) -> None:
    assert loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--output-dir", "run").code == 0
    for path in (*data.rglob("train0.txt"), *data.rglob("more.xml")):
        path.write_text(path.read_text().replace("0.25 0.2", "0.3 0.2").replace(">20<", ">22<"))
    assert_told(
        loradetr("train", "--resume", "run", "--max-steps", 3),
        2,
        ("[C08]", "is not what the run started on; what differs: training split: annotations"),
    )


def test_resuming_from_a_converted_copy_works(loradetr: Command, data: Path) -> None:
    assert loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--output-dir", "run").code == 0
    assert loradetr("data", "convert", data, "coco").code == 0
    ended = loradetr("train", "--resume", "run", "--data", "coco", "--max-steps", 3)
    assert (ended.code, ended.err) == (0, "")


def test_dry_run_and_doctor(loradetr: Command, data: Path) -> None:
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--dry-run")
    assert ended.code == 0
    assert "2 classes" in ended.out or "classes     2:" in ended.out
    ended = loradetr("doctor", "--data", data, "--verify", "decode")
    assert ended.code == 0
    assert "annotations, and every image read" in ended.out


def test_doctor_lists_bad_lines_with_file_and_line(loradetr: Command, tmp_path: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    text(data / "train" / "labels" / "train0.txt", "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 nan\n")
    text(data / "valid" / "labels" / "valid0.txt", "5 0.5 0.5 0.5 0.5\n")
    ended = loradetr("doctor", "--data", data)
    assert ended.code == 3
    assert "error[D09]: train/labels/train0.txt:2: expected shares of the image" in ended.out
    assert "error[D10]: valid/labels/valid0.txt:1: category_id 5 is not in categories" in ended.out
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--on-bad-data", "skip", "--dry-run")
    assert_told(ended, 3, ("[D10]", "valid/labels/valid0.txt:1"))


def test_images_that_cannot_be_read_are_left_out_on_request(loradetr: Command, data: Path) -> None:
    # Its size is in the begin of the file of one format, and in the XML file of the other.
    victim = next(path for name in ("train1.jpg", "more.jpg") for path in sorted(data.rglob(name)))
    victim.write_bytes(victim.read_bytes()[:-300])
    verify = ("--verify", "decode")
    assert_told(loradetr("train", "--preset", SMALL, "--data", data, *FEW, *verify), 3, ("[D18]", victim.name))
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, *verify, "--on-bad-data", "skip")
    assert (ended.code, ended.err) == (0, "")


def test_without_a_validation_split_the_command_that_makes_one_is_printed_and_works(
    loradetr: Command, data: Path
) -> None:
    (data / "valid").rename(data / "elsewhere")
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, "--dry-run")
    assert ended.code == 0
    (line,) = [line for line in ended.out.splitlines() if line.startswith("val ")]
    assert f"loradetr data convert {data} OUT --split val=0.2" in line
    ended = loradetr("data", "convert", data, "OUT", "--split", "val=0.2")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "next: loradetr train --data OUT")
    assert "2 image files linked (hard links take no space; --copy copies them)" in ended.out
    train_split, val = read(Path("OUT"))
    assert (len(train_split), val is not None and len(val)) == (1, 1)


def test_settings_of_voc_reach_every_command(loradetr: Command, tmp_path: Path) -> None:
    data = voc2007(tmp_path / "data")
    voc = ("--set", "data.voc_offset=0", "--set", "data.voc_difficult=keep")
    ended = loradetr("train", "--preset", SMALL, "--data", data, *FEW, *voc, "--set", "train.batch_size=1", "-o", "run")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(Path("run/data_report.json").read_text())
    assert report["train"]["notes"] == ["1 difficult object: kept"]
    assert loradetr("eval", "run", "--device", "cpu", "--workers", 0).code == 0
    ended = loradetr("data", "convert", data, "out", "--voc-offset", "0", "--voc-difficult", "keep")
    assert ended.code == 0
    rows = json.loads(Path("out/annotations/instances_train.json").read_text())["annotations"]
    assert [(row["bbox"], row["iscrowd"]) for row in rows[:2]] == [([1, 1, 39, 29], 0), ([11, 6, 9, 9], 0)]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("train --data-format yol", 2, ("yol", "must be one of auto, coco,", "did you mean 'yolo'")),
        ("doctor --data DATA --data-format yol", 2, ("--data-format yol: must be one of",)),
        ("doctor --data DATA --data-format voc", 3, ("expected VOCdevkit/VOC2007/", "found data.yaml, test, train")),
        ("doctor --data-format yolo", 2, ("--data-format needs --data",)),
        ("eval run --data-format yolo", 2, ("--data-format needs --data",)),
        ("data convert DATA out --split 0.2", 2, ("--split 0.2: expected val= and a share between 0 and 1",)),
        ("data convert DATA out --split val=2", 2, ("--split val=2: expected val= and a share",)),
        ("data convert DATA out --split val=0.2", 2, ("has a validation split already",)),
        ("data convert DATA out --voc-offset 2", 2, ("--voc-offset 2: expected auto, 0 or 1",)),
        ("data convert DATA DATA", 2, ("[C06]", "is not empty; nothing was touched")),
        ("data convert absent out", 2, ("absent", "found nothing there")),
    ],
)
def test_mistakes(words: str, code: int, told: tuple[str, ...], loradetr: Command, tmp_path: Path) -> None:
    data = roboflow_yolo(tmp_path / "data")
    given = [str(data) if word == "DATA" else word for word in words.split()]
    given += ["--preset", SMALL, "--data", data] if given[0] == "train" else []
    ended = loradetr(*given)
    assert ended.code == code
    assert not [part for part in told if part not in ended.err]
    assert not Path("out").exists()
