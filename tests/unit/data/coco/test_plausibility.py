"""Whole files of boxes in every convention that is in use, and splits that teach nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_detr.data.coco.audit import audit
from lora_detr.data.coco.plausibility import box_doubt
from lora_detr.data.coco.report import AnnotationError
from lora_detr.data.coco.split import load_coco

Boxes = NDArray[np.float64]
Convention = Callable[[Boxes, Boxes], Boxes]


def case(count: int = 60, seed: int = 0, sides: tuple[int, int] = (1100, 2400)) -> tuple[Boxes, Boxes]:
    """Return boxes x, y, w, h that are spread over images, and the sizes of those."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(*sides, (count, 2)).astype(float)
    extent = draw.uniform(0.05, 0.4, (count, 2)) * sizes
    corner = draw.uniform(0, 1, (count, 2)) * (sizes - extent)
    corner[0] = sizes[0] - extent[0]  # objects at the borders are in every set
    return np.concatenate((corner, extent), axis=1).round(2), sizes


def corners(b: Boxes) -> Boxes:
    return np.concatenate((b[:, :2], b[:, :2] + b[:, 2:]), axis=1)


def centred(b: Boxes) -> Boxes:
    return np.concatenate((b[:, :2] + b[:, 2:] / 2, b[:, 2:]), axis=1)


def relative(b: Boxes, sizes: Boxes) -> Boxes:
    return b / np.tile(sizes, 2)


# What a file may hold, and what is said of it.
CONVENTIONS: dict[str, tuple[Convention, str]] = {
    "voc": (lambda b, s: corners(b), "x1, y1, x2, y2, not"),
    "centred pixels": (lambda b, s: centred(b), "centre x, centre y, width, height, not"),
    "tensorflow pixels": (lambda b, s: corners(b)[:, [1, 0, 3, 2]], "y1, x1, y2, x2, not"),
    "open images pixels": (lambda b, s: corners(b)[:, [0, 2, 1, 3]], "x1, x2, y1, y2, not"),
    "yx": (lambda b, s: b[:, [1, 0, 3, 2]], "y, x, height, width, or width"),
    "yolo": (lambda b, s: relative(centred(b), s), "centre x, centre y, width, height relative to the image (0 to 1)"),
    "relative": (lambda b, s: relative(b, s), "width, height relative to the image (0 to 1)"),
    "albumentations": (lambda b, s: relative(corners(b), s), "x1, y1, x2, y2 relative to the image (0 to 1)"),
    "open images": (lambda b, s: relative(corners(b), s)[:, [0, 2, 1, 3]], "x1, x2, y1, y2 relative to the image"),
    "label studio": (
        lambda b, s: 100 * relative(b, s),
        "x, y, width, height relative to the image (0 to 100, percent)",
    ),
    "gemini": (
        lambda b, s: (1000 * relative(corners(b), s))[:, [1, 0, 3, 2]].round(),
        "relative to the image (0 to 1000)",
    ),
    "qwen": (lambda b, s: (1000 * relative(corners(b), s)).round(), "x1, y1, x2, y2 relative to the image (0 to 1000)"),
    "paligemma": (lambda b, s: (1024 * relative(corners(b), s)).round(), "relative to the image (0 to 1024)"),
    "twice the size": (lambda b, s: 2 * b, "of images of another size"),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_whole_file_of_another_convention_is_named(name: str, seed: int) -> None:
    boxes, sizes = case(seed=seed)
    convention, said = CONVENTIONS[name]
    stored = convention(boxes, sizes)
    assert said in box_doubt(stored, sizes, stored[:, 2] * stored[:, 3])


@pytest.mark.parametrize("name", ["qwen", "paligemma"])
def test_units_larger_than_the_images(name: str) -> None:
    boxes, sizes = case(sides=(300, 500))
    stored = CONVENTIONS[name][0](boxes, sizes)
    assert CONVENTIONS[name][1] in box_doubt(stored, sizes, stored[:, 2] * stored[:, 3])


def test_images_whose_sides_are_exchanged() -> None:
    boxes, sizes = case()
    sizes[:, 0] = 2.5 * sizes[:, 1]
    boxes, _ = case()
    boxes[:, [0, 2]] *= (sizes / case()[1])[:, :1]
    doubt = box_doubt(boxes, sizes[:, ::-1], boxes[:, 2] * boxes[:, 3])
    assert "or width and height of the images are exchanged" in doubt


def test_areas_tell_corners_where_no_box_reaches_out() -> None:
    boxes, sizes = case()
    inside = corners(boxes * 0.3)  # all in the upper left part
    areas = boxes[:, 2] * boxes[:, 3] * 0.09
    assert "areas are those of corners" in box_doubt(inside, sizes, areas)
    assert box_doubt(inside, sizes, inside[:, 2] * inside[:, 3]) == ""


@pytest.mark.parametrize("seed", range(20))
def test_boxes_as_coco_has_them_are_not_doubted(seed: int) -> None:
    for sides in ((8, 15), (60, 110), (300, 800), (1100, 4000)):
        for count in (1, 2, 7, 300):
            boxes, sizes = case(count, seed, sides)
            assert box_doubt(boxes, sizes, boxes[:, 2] * boxes[:, 3]) == "", (sides, count)
            wide = boxes + np.array([-0.004, -0.004, 0.008, 0.008]) * np.tile(sizes, 2)  # rounded, or a little beyond
            assert box_doubt(wide, sizes, wide[:, 2] * wide[:, 3]) == "", (sides, count)
    assert box_doubt(np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0)) == ""


def test_real_files_are_not_doubted(real_data: Path) -> None:
    files = sorted(real_data.glob("*/annotations/instances_*.json"))
    assert len(files) >= 4
    for file in files:
        assert load_coco(file, file.parents[1], check_files=False).report.box_doubt == "", file


def test_it_is_a_warning_and_an_error_with_strict_d28(shapes_tiny: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_tiny / "annotations" / "instances_train.json").read_text())
    for row in content["annotations"]:
        row["bbox"] = [0.41, 0.37, 0.13, 0.21]
        del row["area"]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    report = load_coco(path, tmp_path, check_files=False).report
    (line,) = [line for line in report.remarks() if "relative to the image (0 to 1)" in line]
    assert line.startswith("no number is above 0.41: they look like x, y, width, height relative")
    assert line.endswith("convert them to x, y, width, height in pixels")
    with pytest.raises(AnnotationError) as caught:
        load_coco(path, tmp_path, check_files=False, strict=True)
    assert caught.value.code == "D28"
    assert str(caught.value).count("D28") == 1  # one cause


def edit(data: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def crowd_only(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        row["iscrowd"] = 1


def one_class(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        row["category_id"] = 3


def one_object(content: dict[str, Any]) -> None:
    content["annotations"] = [
        next(row for row in content["annotations"] if row["category_id"] == category["id"])
        for category in content["categories"][:2]
    ]


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", lambda content: content["annotations"].clear(), "train.json has no object: nothing can be learnt"),
        ("train", crowd_only, "train.json has only crowd regions ("),
        ("val", lambda content: content["annotations"].clear(), "val.json has no object: AP cannot be measured"),
        ("train", one_class, "without an object in instances_train.json: their AP will be 0"),
        ("train", one_object, "instances_train.json has a single object of each class"),
    ],
)
def test_data_without_use_is_told(
    split: str, change: Callable[[dict[str, Any]], None], said: str, shapes_tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val"):
        (tmp_path / name).symlink_to(shapes_tiny / name, target_is_directory=True)
        source = shapes_tiny / "annotations" / f"instances_{name}.json"
        (tmp_path / "annotations" / source.name).write_bytes(source.read_bytes())
    before = audit(tmp_path).warnings
    edit(tmp_path, split, change)
    new = [line for line in audit(tmp_path).warnings if line not in before]
    assert any(said in line for line in new), new
