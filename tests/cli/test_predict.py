"""``loradetr predict``: pictures, one COCO file, and what a user's mistakes look like."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

import lora_detr
from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.evaluation.drawing import label_colour
from tests.cli.conftest import Command, Ended, run_process

LOW = ("--score", 0.2)
command = import_module("lora_detr.cli.predict")  # in its package, the name is that of the function


@pytest.fixture
def photos(shapes_tiny: Path) -> Path:
    """A folder ``photos`` with three images, beside files that are none."""
    folder = Path("photos")
    folder.mkdir()
    for source, name in zip(sorted((shapes_tiny / "val").iterdir()), ("b.png", "a.JPG", "c.png"), strict=False):
        with Image.open(source) as image:
            image.convert("RGB").save(folder / name, quality=95)
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.jpg").write_bytes(b"what a system keeps about a photo")
    (folder / "inner").mkdir()
    shutil.copy(folder / "b.png", folder / "inner" / "d.png")
    (folder / "folder.png").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _empty_folder(loradetr: Command) -> None:
    """Every test starts where ``loradetr`` runs."""


def document(folder: str = "predictions") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "predictions.json").read_text())
    return content


def loaded(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def assert_fault(ended: Ended, code: int, *parts: str) -> None:
    """One fault with a remedy, and no traceback."""
    assert ended.code == code, ended.err
    assert ended.err.startswith("error")
    assert ended.err.splitlines()[-1].startswith("  ")
    assert "Traceback" not in ended.err + ended.out
    for part in parts:
        assert part in ended.err


def test_a_folder_of_images(loradetr: Command, learned_run: Path, photos: Path) -> None:
    ended = loradetr("predict", learned_run, photos, *LOW)
    assert (ended.code, ended.err) == (0, "")
    used, *left_out, first, second, third, last = ended.out.splitlines()
    assert used == "score 0.20, no suppression"
    assert left_out == [
        "photos: left out 1 file not named as images: notes.txt",
        "photos: left out 2 folders (--recursive): folder.png, inner",
    ]
    lines = [first, second, third]
    assert [line.split(":")[0] for line in lines] == ["a.JPG", "b.png", "c.png"]
    assert all(re.fullmatch(r"\S+: (0 objects|\d+ objects? \(\w+ \d+(, \w+ \d+)*\))", line) for line in lines)
    assert last == "wrote predictions/predictions.json and 3 pictures"
    assert sorted(os.listdir("predictions")) == ["a.jpg", "b.png", "c.png", "predictions.json"]
    assert sorted(os.listdir()) == ["photos", "predictions"]


def test_the_document_is_a_coco_file_with_original_ids(
    loradetr: Command, learned_run: Path, learned_data: Path, photos: Path
) -> None:
    loradetr("predict", learned_run, photos, *LOW, "--no-draw")
    assert os.listdir("predictions") == ["predictions.json"]
    coco = loaded(Path("predictions/predictions.json"))
    truth = json.loads((learned_data.parent / "two.json").read_text())
    assert {row["id"]: row["name"] for row in coco.loadCats(coco.getCatIds())} == {
        row["id"]: row["name"] for row in truth["categories"]
    }
    assert min(coco.getCatIds()) == 3  # not 0 or 1: the ids of the training data
    assert [(row["id"], row["file_name"]) for row in coco.dataset["images"]] == [
        (1, "a.JPG"),
        (2, "b.png"),
        (3, "c.png"),
    ]
    predictor = lora_detr.load(learned_run, device="cpu")
    for row in coco.dataset["images"]:
        path = photos / row["file_name"]
        with Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size
        found = predictor.predict(path, score=0.2)
        annotations = coco.loadAnns(coco.getAnnIds(row["id"]))
        assert len(annotations) == len(found) > 0
        assert [entry["category_id"] for entry in annotations] == list(found.category_ids)
        assert [entry["score"] for entry in annotations] == pytest.approx(found.scores.tolist())
    for i, entry in enumerate(coco.dataset["annotations"], start=1):
        x, y, width, height = entry["bbox"]
        assert entry["id"] == i
        assert entry["iscrowd"] == 0
        assert entry["area"] == pytest.approx(width * height)
        image = coco.imgs[entry["image_id"]]
        assert 0 <= x < x + width <= image["width"] + 1e-3
        assert 0 <= y < y + height <= image["height"] + 1e-3


def test_pictures_show_the_predictions(loradetr: Command, learned_run: Path, photos: Path) -> None:
    loradetr("predict", learned_run, photos / "b.png", *LOW)
    found = lora_detr.load(learned_run, device="cpu").predict(photos / "b.png", 0.2)
    with Image.open("predictions/b.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
        assert pixels.tobytes() == found.draw().tobytes()
    assert (pixels == np.array(label_colour(int(found.labels[0])))).all(axis=2).sum() > 100


def test_a_stripped_file_gives_the_same_as_the_run(loradetr: Command, learned_run: Path, photos: Path) -> None:
    opened = open_run(learned_run)
    write_stripped(Path("model.safetensors"), opened.model.detector.state_dict(), opened.deployment)
    for model, output in ((learned_run, "one"), ("model.safetensors", "two")):
        assert loradetr("predict", model, photos, *LOW, "--output", output).code == 0
    for name in os.listdir("one"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name


def test_options_reach_the_detector(loradetr: Command, learned_run: Path, photos: Path) -> None:
    def count(*options: object) -> int:
        assert loradetr("predict", learned_run, photos, "--no-draw", *options).code == 0
        return len(document()["annotations"])

    everything = count("--score", 0)
    assert everything == 3 * 100
    assert 0 < count(*LOW) < everything
    assert count(*LOW, "--nms", 0.1) < count(*LOW)
    assert count("--score", 0.9) == 0
    assert count(*LOW, "--batch-size", 2) == pytest.approx(count(*LOW), abs=2)  # padding moves scores a little


def test_the_operating_point_is_used_unless_options_say_otherwise(
    loradetr: Command, learned_run: Path, photos: Path, tmp_path: Path
) -> None:
    """The point of the run, changed to one that keeps little and suppresses: it is what a stripped file has too."""
    run = Path(shutil.copytree(learned_run, "run"))
    opened = open_run(run)
    point = opened.deployment.operating_point
    assert point is not None and point.class_scores == (None,) * len(opened.categories.ids)
    weights = dict(opened.detector.state_dict())
    changed = point.model_copy(update={"score": 0.1, "nms_iou": 0.6})
    write_stripped(
        Path("model.safetensors"), weights, opened.deployment.model_copy(update={"operating_point": changed})
    )
    found = {}
    for options in ((), ("--no-nms",), ("--nms", 0.3), ("--score", 0.9)):
        ended = loradetr("predict", "model.safetensors", photos, "--no-draw", *options)
        assert ended.code == 0, ended.err
        found[options] = ended.out.splitlines()[0], len(document()["annotations"])
    assert [line for line, _ in found.values()] == [
        "score 0.10 (operating point of the model), suppression at IoU 0.6",
        "score 0.10 (operating point of the model), no suppression",
        "score 0.10 (operating point of the model), suppression at IoU 0.3",
        "score 0.90, suppression at IoU 0.6",
    ]
    chosen, kept, suppressed, sure = (count for _, count in found.values())
    assert kept >= chosen >= suppressed > 0
    assert sure < chosen
    ended = loradetr("predict", "model.safetensors", photos, "--nms", "--no-nms")
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: --nms and --no-nms exclude each other")


def test_json_is_all_that_is_printed(loradetr: Command, learned_run: Path, photos: Path) -> None:
    ended = loradetr("predict", learned_run, photos, *LOW, "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == document()
    assert all(line.startswith("photos: left out ") for line in ended.err.splitlines())
    assert Path("predictions/a.jpg").is_file()


def test_recursive_takes_the_folders_within_and_nothing_is_left_out_silently(
    loradetr: Command, learned_run: Path, photos: Path
) -> None:
    (photos / "inner" / "deep").mkdir(parents=True, exist_ok=True)
    shutil.copy(photos / "b.png", photos / "inner" / "deep" / "photo.JFIF")
    ended = loradetr("predict", learned_run, photos, *LOW, "--recursive", "--no-draw")
    assert (ended.code, ended.err) == (0, "")
    names = [Path(row["file_name"]).name for row in document()["images"]]
    assert names[:2] == ["a.JPG", "b.png"]
    assert "photo.JFIF" in names
    assert "(--recursive)" not in ended.out
    assert "notes.txt" in ended.out


def test_the_document_has_what_importers_want(loradetr: Command, learned_run: Path, photos: Path) -> None:
    loradetr("predict", learned_run, photos / "b.png", *LOW, "--no-draw")
    written = document()
    assert list(written) == ["info", "licenses", "images", "annotations", "categories"]
    assert not any("segmentation" in row for row in written["annotations"])


def test_an_address_is_named_as_such(loradetr: Command, learned_run: Path) -> None:
    ended = loradetr("predict", learned_run, "https://example.com/a.jpg")
    assert_fault(ended, 2, "https:/example.com/a.jpg: is an address", "download the image")


def test_files_and_folders_are_taken_once_each(loradetr: Command, learned_run: Path, photos: Path) -> None:
    shutil.copy(photos / "b.png", "odd.suffix")
    ended = loradetr("predict", learned_run, photos / "c.png", photos, photos.resolve() / "c.png", "odd.suffix")
    assert ended.code == 0
    assert [row["file_name"] for row in document()["images"]] == ["c.png", "a.JPG", "b.png", "odd.suffix"]
    assert Path("predictions/odd.png").is_file()


def test_images_of_one_stem_do_not_overwrite_each_other(loradetr: Command, learned_run: Path, photos: Path) -> None:
    for folder, name in (("one", "x.png"), ("two", "x.png"), ("one", "x.jpg"), ("two", "X.bmp"), ("two", "x-2.png")):
        Path(folder).mkdir(exist_ok=True)
        with Image.open(photos / "b.png") as image:
            image.save(Path(folder, name))
    assert loradetr("predict", learned_run, "one", "two", "--score", 0.5).code == 0
    assert sorted(os.listdir("predictions")) == sorted(
        ["x.jpg", "x.png", "X-2.png", "x-2-2.png", "x-3.png", "predictions.json"]
    )
    # Images of the same name are told apart by their folders.
    assert [row["file_name"] for row in document()["images"]] == [
        *("x.jpg", "one/x.png", "X.bmp", "x-2.png", "two/x.png"),
    ]


class TestIdsOfAnAnnotationFile:
    """``--annotations`` gives images the ids they have there."""

    def write(self, *names: str) -> None:
        images = [{"id": 40 + i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
        Path("truth.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))

    def test_by_file_name(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        self.write("c.png", "other/b.png", "photos/b.png", "a.JPG", "b.jpg")
        options = (*LOW, "--annotations", "truth.json")
        assert loradetr("predict", learned_run, photos, *options).code == 0
        found = document()
        assert [(row["id"], row["file_name"]) for row in found["images"]] == [
            (43, "a.JPG"),
            (42, "photos/b.png"),
            (40, "c.png"),
        ]
        assert {row["image_id"] for row in found["annotations"]} == {40, 42, 43}
        with contextlib.redirect_stdout(io.StringIO()):  # such results can be scored against the file
            assert len(loaded(Path("truth.json")).loadRes(found["annotations"]).anns) == len(found["annotations"])

    @pytest.mark.parametrize(
        ("names", "part"),
        [
            (("a.JPG", "other/b.png", "c.png"), "1 of 3 images are not in it: photos/b.png"),
            (("a.JPG", "b.png", "photos/b.png", "c.png"), "photos/b.png may be id 41 (b.png) and id 42 (photos/b.png)"),
            (("a.JPG", "b.png", ""), "1 of 3 images are not in it: photos/c.png"),
        ],
    )
    def test_images_without_an_id_end_before_anything_is_done(
        self, names: tuple[str, ...], part: str, loradetr: Command, learned_run: Path, photos: Path
    ) -> None:
        self.write(*names)
        ended = loradetr("predict", learned_run, photos, "--annotations", "truth.json")
        assert_fault(ended, 3, "truth.json", part)
        assert not Path("predictions").exists()

    def test_two_images_of_one_id(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        self.write("b.png", "d.png")
        shutil.copy(photos / "b.png", "b.png")
        ended = loradetr("predict", learned_run, photos / "b.png", "b.png", "--annotations", "truth.json")
        assert_fault(ended, 3, "photos/b.png and b.png are both id 40 (b.png)")

    @pytest.mark.parametrize(
        ("text", "part"),
        [("[", "not valid JSON"), ("{}", "missing key 'images'"), ('{"images": [3]}', "missing key"), (None, "t.json")],
    )
    def test_a_file_that_cannot_be_used(
        self, text: str | None, part: str, loradetr: Command, learned_run: Path, photos: Path
    ) -> None:
        if text is not None:
            Path("t.json").write_text(text)
        ended = loradetr("predict", learned_run, photos, "--annotations", "t.json")
        assert ended.code == 3
        assert part in ended.err
        assert "Traceback" not in ended.err


def test_unreadable_images_are_named_and_the_others_done(loradetr: Command, learned_run: Path, photos: Path) -> None:
    (photos / "a2.png").write_bytes(b"<html>")
    (photos / "z.png").write_bytes((photos / "c.png").read_bytes()[:-200])
    ended = loradetr("predict", learned_run, photos, "--batch-size", 2)
    assert_fault(ended, 3, "photos/a2.png: the image cannot be read", "photos/z.png: the image cannot be read")
    assert ended.err.count("error[D18]: ") == 2
    assert "3 other images are done" in ended.err
    assert "a2.png: cannot be read\n" in ended.out
    assert "wrote predictions/predictions.json and 3 pictures" in ended.out
    assert [row["file_name"] for row in document()["images"]] == ["a.JPG", "b.png", "c.png"]
    assert sorted(os.listdir("predictions")) == ["a.jpg", "b.png", "c.png", "predictions.json"]


def test_json_stays_valid_with_unreadable_images(loradetr: Command, learned_run: Path) -> None:
    Path("bad.png").write_bytes(b"")
    ended = loradetr("predict", learned_run, "bad.png", "--json")
    assert_fault(ended, 3, "bad.png", "no image is done")
    assert json.loads(ended.out)["images"] == []


class TestInputsAreKept:
    """No picture and no document is written over a file that is read."""

    def refused(self, loradetr: Command, run: Path, *arguments: object) -> None:
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        assert_fault(loradetr("predict", run, *arguments), 2, "is an input and would be overwritten")
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    def test_in_their_own_folder(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        self.refused(loradetr, learned_run, photos, "--output", photos)
        self.refused(loradetr, learned_run, photos / "b.png", "--output", "photos/../photos")

    def test_through_a_link(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        Path("link").symlink_to("photos")
        self.refused(loradetr, learned_run, photos, "--output", "link")
        Path("hard").mkdir()
        os.link(photos / "c.png", "hard/b.png")
        self.refused(loradetr, learned_run, photos, "--output", "hard")

    def test_the_picture_of_another_image(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        with Image.open(photos / "c.png") as image:
            image.save(photos / "b.bmp")
        self.refused(loradetr, learned_run, photos / "b.bmp", photos / "b.png", "--output", photos)

    def test_the_annotation_file(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        images = [{"id": 1, "file_name": "b.png", "width": 9, "height": 9}]
        text = json.dumps({"images": images, "annotations": [], "categories": []})
        Path("predictions.json").write_text(text)
        options = ("--annotations", "predictions.json", "--output", ".", "--no-draw")
        self.refused(loradetr, learned_run, photos / "b.png", *options)

    def test_without_pictures_the_folder_may_be_the_same(
        self, loradetr: Command, learned_run: Path, photos: Path
    ) -> None:
        before = (photos / "b.png").read_bytes()
        assert loradetr("predict", learned_run, photos, "--output", photos, "--no-draw").code == 0
        assert (photos / "b.png").read_bytes() == before
        assert (photos / "predictions.json").is_file()

    def test_earlier_pictures_are_replaced(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        for _ in range(2):
            assert loradetr("predict", learned_run, photos / "b.png").code == 0
        assert sorted(os.listdir("predictions")) == ["b.png", "predictions.json"]


class TestMistakes:
    """Each ends before anything is computed or written."""

    def test_a_path_that_is_not_there(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        ended = loradetr("predict", learned_run, photos, "absent.jpg", "nowhere")
        assert_fault(ended, 2, "no such file or folder: absent.jpg, nowhere")
        assert not Path("predictions").exists()

    def test_a_folder_without_images(self, loradetr: Command, learned_run: Path) -> None:
        Path("empty/inner").mkdir(parents=True)
        Path("empty/notes.txt").write_text("")
        ended = loradetr("predict", learned_run, "empty")
        assert_fault(ended, 3, "empty: expected images (.jpg .jpeg .jpe", "found none among 2 entries", "--recursive")
        assert not Path("predictions").exists()

    def test_no_images_at_all(self, loradetr: Command, learned_run: Path) -> None:
        ended = loradetr("predict", learned_run)
        assert ended.code == 2
        assert "IMAGES" in ended.err

    def test_a_model_that_is_not_there(self, loradetr: Command, photos: Path) -> None:
        assert_fault(loradetr("predict", "absent", photos), 4, "absent")
        assert not Path("predictions").exists()

    def test_an_unknown_checkpoint(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        assert_fault(loradetr("predict", learned_run, photos, "--checkpoint", "first"), 2, "expected best or last")

    def test_an_unknown_device(self, loradetr: Command, learned_run: Path, photos: Path) -> None:
        assert_fault(loradetr("predict", learned_run, photos, "--device", "gpu"), 2, "device gpu: unknown")

    @pytest.mark.parametrize("option", [("--score", 1.5), ("--score", -1), ("--nms", 2), ("--batch-size", 0)])
    def test_numbers_out_of_range(
        self, option: tuple[str, float], loradetr: Command, learned_run: Path, photos: Path
    ) -> None:
        ended = loradetr("predict", learned_run, photos, *option)
        assert ended.code == 2
        assert option[0] in ended.err
        assert "Traceback" not in ended.err

    def test_an_output_that_cannot_be_written(
        self, loradetr: Command, learned_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, "_predicted", None)  # nothing may be computed
        Path("file").write_text("a file")
        assert_fault(loradetr("predict", learned_run, photos, "--output", "file"), 5, "file: cannot be written")
        assert_fault(loradetr("predict", learned_run, photos, "--output", "file/inner"), 5, "cannot be written")
        assert Path("file").read_text() == "a file"


def test_on_a_terminal_there_is_a_bar_below_the_lines() -> None:
    shown = io.StringIO()
    out = Console(file=shown, force_terminal=True, width=80, highlight=False)
    with command._shown(out, 2, quiet=False) as show:
        show("a.png: 1 object (star 1)")
        show("b.png: 0 objects")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.getvalue())
    assert "a.png: 1 object (star 1)\n" in text
    assert "2/2" in text


def test_help_fits_a_screen_and_shows_an_example(tmp_path: Path) -> None:
    ended = run_process("predict", "--help", folder=tmp_path, COLUMNS="80", NO_COLOR="1")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert "Example: loradetr predict runs/" in ended.out
