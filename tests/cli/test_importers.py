"""``predictions.json`` is read by the programs it is meant for: their own importers, where they are installed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def document(loradetr: Command, learned_run: Path, learned_data: Path) -> Path:
    """A folder as exports of CVAT have it: ``annotations/instances_default.json`` and ``images/default``."""
    root = Path("export").resolve()
    photos = root / "images" / "default"
    photos.mkdir(parents=True)
    for row in json.loads((learned_data.parent / "two.json").read_text())["images"]:
        shutil.copy(learned_data.parent / "pictures" / row["file_name"], photos)
    ended = loradetr("predict", learned_run, photos, "--score", 0.2, "--no-draw")
    assert ended.code == 0, ended.err
    (root / "annotations").mkdir()
    return Path(shutil.copy(Path("predictions/predictions.json"), root / "annotations" / "instances_default.json"))


def boxes_of(document: Path) -> Counter[tuple[str, tuple[int, ...]]]:
    """Return class and rounded corner and size of every object."""
    value = json.loads(document.read_text())
    names = {row["id"]: row["name"] for row in value["categories"]}
    found = Counter((names[row["category_id"]], rounded(row["bbox"])) for row in value["annotations"])
    assert len(found) > 2
    return found


def rounded(box: Any) -> tuple[int, ...]:
    return tuple(round(float(side)) for side in box)


def test_pycocotools(document: Path) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(document))
    assert len(coco.getAnnIds()) == boxes_of(document).total()
    # As results, its annotations belong to the same images.
    assert len(coco.loadRes(json.loads(document.read_text())["annotations"]).getAnnIds()) == len(coco.getAnnIds())


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_datumaro_which_imports_for_cvat(streamed: bool, document: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="pip install datumaro to run it")
    kind = datumaro.StreamDataset if streamed else datumaro.Dataset
    dataset = kind.import_from(str(document.parents[1]), "coco_instances")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    found = Counter(
        (labels[each.label].name, rounded(each.get_bbox())) for item in dataset for each in item.annotations
    )
    assert found == boxes_of(document)


def test_label_studio(document: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip(
        "label_studio_converter.imports.coco", reason="pip install label-studio-converter to run it"
    )
    coco.convert_coco_to_ls(str(document), str(tmp_path / "tasks.json"))
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    found = [result for task in tasks for each in task["annotations"] for result in each["result"]]
    assert Counter(result["value"]["rectanglelabels"][0] for result in found) == Counter(
        name for name, _ in boxes_of(document).elements()
    )


def test_fiftyone(document: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="pip install fiftyone to run it")
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.COCODetectionDataset,
        data_path=str(document.parents[1] / "images" / "default"),
        labels_path=str(document),
    )
    labels = [detection.label for sample in dataset for detection in sample.detections.detections]
    assert Counter(labels) == Counter(name for name, _ in boxes_of(document).elements())
