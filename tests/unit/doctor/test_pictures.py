"""Pictures of a data set are PNG files of the sizes that they are meant to have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_detr.data.quality.detector_limits import DetectorLimits
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.doctor.pictures import CELL, ROWS, SAMPLES, TITLE, draw_data
from tests.unit.data.coco.coco_files import content, load, write_images

LIMITS = DetectorLimits(300, "model.num_queries", 100, EvalTransformConfig())
DIAGRAMS = ["classes.png", "object_sizes.png", "objects_per_image.png"]


def many_classes(count: int) -> dict[str, Any]:
    """Return a file with an image and an object for each class, and one class more."""
    value = content(count, 60, 90)
    value["categories"] = [{"id": i, "name": f"class {i} $x$ " + "long " * (i % 9)} for i in range(1, count + 2)]
    for i, row in enumerate(value["annotations"], start=1):
        row["category_id"] = i
    return value


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.convert("RGB")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def test_a_sheet_for_every_few_classes(tmp_path: Path, pictures: Path) -> None:
    value = many_classes(ROWS + 2)
    write_images(tmp_path, value)
    paths = draw_data([load(tmp_path, value)], LIMITS, pictures)
    assert sorted(path.name for path in paths) == [*DIAGRAMS, "samples-1.png", "samples-2.png"]
    assert paths == [path for path in paths if path.is_file()]
    first, second = opened(pictures / "samples-1.png"), opened(pictures / "samples-2.png")
    assert first.width == second.width >= SAMPLES * CELL[0]
    assert ROWS * (CELL[1] + TITLE) <= first.height < (ROWS + 1) * (CELL[1] + TITLE)
    assert 2 * (CELL[1] + TITLE) <= second.height < 3 * (CELL[1] + TITLE)


def test_diagrams_are_drawn_of_two_splits(tmp_path: Path, pictures: Path) -> None:
    value = many_classes(3)
    write_images(tmp_path, value)
    split = load(tmp_path, value)
    draw_data([split, split], LIMITS, pictures)
    assert opened(pictures / "object_sizes.png").size == (960, 540)
    assert opened(pictures / "objects_per_image.png").size == (960, 540)
    assert opened(pictures / "classes.png").width == 960
    colours = {tuple(pixel) for pixel in np.asarray(opened(pictures / "classes.png")).reshape(-1, 3).tolist()}
    assert len(colours) > 2


def test_more_classes_make_a_higher_diagram_up_to_a_limit(tmp_path: Path, pictures: Path) -> None:
    heights = []
    for count in (3, 80, 300, 1200):
        value = many_classes(count)
        value["images"] = value["images"][:1]
        value["annotations"] = [{**row, "image_id": 10} for row in value["annotations"]]
        folder = tmp_path / str(count)
        folder.mkdir()
        from lora_detr.doctor.histograms import class_counts

        (folder / "classes.png").write_bytes(class_counts([load(folder, value)]))
        heights.append(opened(folder / "classes.png").height)
    assert heights[0] < heights[1] < heights[2] == heights[3] < 4000


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, pictures: Path) -> None:
    value = many_classes(2)
    write_images(tmp_path, value)
    (tmp_path / "0.png").write_bytes(b"no image")
    assert len(draw_data([load(tmp_path, value)], LIMITS, pictures)) == 4


def test_nothing_to_draw(tmp_path: Path, pictures: Path) -> None:
    assert draw_data([], LIMITS, pictures) == []
    value = content(2)
    value["annotations"] = []
    paths = draw_data([load(tmp_path, value)], LIMITS, pictures)
    assert sorted(path.name for path in paths) == DIAGRAMS
