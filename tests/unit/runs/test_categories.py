"""Original ids and names of the classes go with the weights wherever they go, and every result carries these ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_detr
from lora_detr.checkpoints.checkpoint import load_checkpoint
from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import read_stripped, write_stripped
from lora_detr.data.coco.categories import COCO_NAMES, COCO_SLOTS, UNUSED
from lora_detr.runs.evaluate import PRIMARY, evaluate_parts
from tests import small_runs


@pytest.fixture(scope="module")
def coco_data(learned_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two images, their categories renamed to those that COCO has under the same ids."""
    folder = tmp_path_factory.mktemp("coco")
    content = json.loads((learned_data.parent / "two.json").read_text())
    for row in content["categories"]:
        row["name"] = COCO_NAMES[row["id"]]
    (folder / "two.json").write_text(json.dumps(content))
    (folder / "pictures").symlink_to(learned_data.parent / "pictures")
    (folder / "data.yaml").write_text(learned_data.read_text())
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def coco_run(coco_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on these with COCO's ids as labels."""
    output = tmp_path_factory.mktemp("runs") / "coco"
    return small_runs.train(coco_data, output, *small_runs.LEARNED, "data.num_classes=coco91").directory


def original_names(data: Path) -> dict[int, str]:
    content = json.loads((data.parent / "two.json").read_text())
    return {row["id"]: row["name"] for row in content["categories"]}


def stored_maps(run: Path) -> list[Any]:
    """Return what each checkpoint of a run holds."""
    paths = sorted((run / "checkpoints").glob("step-*"))
    assert len(paths) > 1
    return [load_checkpoint(path, with_optimizer=False).state.categories for path in paths]


def test_every_checkpoint_holds_original_ids_and_names(learned_run: Path, learned_data: Path) -> None:
    names = original_names(learned_data)
    for stored in stored_maps(learned_run):
        assert dict(zip(stored["ids"], stored["names"], strict=True)) == names
        assert stored["ids"] == sorted(names)


def test_every_checkpoint_with_ids_of_coco_holds_all_slots(coco_run: Path) -> None:
    for stored in stored_maps(coco_run):
        assert stored["ids"] == list(range(COCO_SLOTS))
        assert stored["names"] == [COCO_NAMES.get(i, UNUSED) for i in range(COCO_SLOTS)]


@pytest.mark.parametrize("kind", ["data set's own", "coco91"])
def test_results_carry_original_ids(
    kind: str, learned_run: Path, learned_data: Path, coco_run: Path, coco_data: Path, tmp_path: Path
) -> None:
    run, data = (coco_run, coco_data) if kind == "coco91" else (learned_run, learned_data)
    opened = open_run(run)
    stripped = tmp_path / "stripped.safetensors"
    write_stripped(stripped, opened.model.detector.state_dict(), opened.deployment)
    assert read_stripped(stripped).deployment.categories == opened.categories

    names = original_names(data)
    content = json.loads((data.parent / "two.json").read_text())
    for model in (run, stripped):
        written = tmp_path / "predictions.json"
        metrics = evaluate_parts(model, data=data, predictions=written, workers=0, device="cpu", say=lambda text: None)[
            PRIMARY
        ]
        # Only where ids and labels are told apart are the numbers far from zero.
        assert metrics.values["AP"] > 0.1
        assert {row.category_id: row.name for row in metrics.per_class if row.objects} == {
            row["category_id"]: names[row["category_id"]] for row in content["annotations"]
        }
        found = lora_detr.load(model, device="cpu")
        for image in content["images"]:
            there = {row["category_id"] for row in content["annotations"] if row["image_id"] == image["id"]}
            rows = [row for row in json.loads(written.read_text()) if row["image_id"] == image["id"]]
            assert max(rows, key=lambda row: row["score"])["category_id"] in there
            best = found.predict(data.parent / "pictures" / image["file_name"], score=0.0)
            assert best.category_ids[0] in there
            assert best.names[0] == names[best.category_ids[0]]
            assert best.to_coco(1)[0]["category_id"] == best.category_ids[0]
