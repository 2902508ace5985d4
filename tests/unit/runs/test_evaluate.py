"""Evaluating a run, a checkpoint and a stripped file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.errors import CheckpointError, ConfigError, DataError
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.runs.evaluate import evaluate_parts
from tests import small_runs


def evaluate(model: Path, **options: Any) -> CocoMetrics:
    defaults: dict[str, Any] = {
        "data": None,
        "which": "last",
        "part": None,
        "nms_iou": None,
        "predictions": None,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "say": lambda text: None,
    }
    (metrics,) = evaluate_parts(model, **{**defaults, **options}).values()
    return metrics


@pytest.fixture(scope="module")
def stripped(learned_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stripped file, without the proof."""
    path = tmp_path_factory.mktemp("stripped") / "model.safetensors"
    opened = open_run(learned_run)
    write_stripped(path, opened.model.detector.state_dict(), opened.deployment)
    return path


@pytest.fixture
def own(learned_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(learned_run, tmp_path / "own"))


def test_run_checkpoint_and_stripped_file_give_the_same_numbers(
    learned_run: Path, learned_data: Path, stripped: Path, own: Path, tmp_path: Path
) -> None:
    found, written = [], []
    models = (own, own / "checkpoints" / "step-00000040", stripped)
    for i, model in enumerate(models):
        path = tmp_path / f"{i}.json"
        found.append(evaluate(model, data=learned_data, predictions=path))
        written.append(path.read_bytes())
    assert len(found[0].values) == 12
    assert found[0].values["AP"] > 0.2
    assert found[0].to_json() == found[1].to_json() == found[2].to_json()
    assert written[0] == written[1] == written[2]
    # And the numbers are those that training ended with, in batches of the same size.
    stored = json.loads((learned_run / "eval" / "metrics.json").read_text())
    assert {"checkpoint": "step-00000040", **found[0].to_json()} == stored


def test_evaluating_a_run_writes_its_folder(own: Path) -> None:
    shutil.rmtree(own / "eval")
    lines: list[str] = []
    metrics = evaluate(own, batch_size=None, say=lines.append)
    assert lines == ["step-00000040: 2 images of two.json"]
    stored = json.loads((own / "eval" / "metrics.json").read_text())
    assert stored == {"checkpoint": "step-00000040", **metrics.to_json()}
    header, *rows = (own / "eval" / "per_class.csv").read_text().splitlines()
    assert header == "category_id,name,objects,AP,AP50"
    assert [row.split(",")[:2] for row in rows[:2]] == [["3", "circle"], ["7", "square"]]
    assert len(json.loads((own / "eval" / "predictions.json").read_text())) > 0


def test_predictions_carry_original_category_ids(learned_run: Path, learned_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    evaluate(learned_run, data=learned_data, predictions=path)
    found = json.loads(path.read_text())
    content = json.loads((learned_data.parent / "two.json").read_text())
    assert {entry["category_id"] for entry in found} <= {category["id"] for category in content["categories"]}
    assert {entry["image_id"] for entry in found} == {image["id"] for image in content["images"]}
    # The best detections are of what is there: labels and ids were not mixed up.
    best = max(found, key=lambda entry: entry["score"])
    there = {row["category_id"] for row in content["annotations"] if row["image_id"] == best["image_id"]}
    assert best["category_id"] in there


def test_other_ways_to_evaluate_leave_the_run_alone(own: Path, learned_data: Path) -> None:
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    plain = evaluate(own, data=learned_data)
    branch = evaluate(own, part=0)
    suppressed = evaluate(own, nms_iou=0.3)
    assert branch.values["AP"] > 0
    assert branch.values != plain.values
    assert suppressed.values["AP"] > 0
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_suppressing_duplicates_leaves_no_two_of_a_class_that_overlap(
    learned_run: Path, learned_data: Path, tmp_path: Path
) -> None:
    overlaps = []
    for nms_iou in (None, 0.2, 0.1):
        path = tmp_path / "predictions.json"
        evaluate(learned_run, data=learned_data, part=0, nms_iou=nms_iou, predictions=path)
        overlaps.append(largest_overlap(json.loads(path.read_text())))
    plain, loose, tight = overlaps
    assert plain > 0.2 + 1e-3 >= loose
    assert tight <= 0.1 + 1e-3


def test_what_is_a_duplicate_is_a_setting_of_the_run(
    learned_run: Path, learned_data: Path, stripped: Path, tmp_path: Path
) -> None:
    opened = open_run(learned_run)
    changed = opened.config.model_copy(
        update={"evaluation": opened.config.evaluation.model_copy(update={"suppression": "any-class"})}
    )
    of_any = tmp_path / "any.safetensors"
    write_stripped(of_any, opened.model.detector.state_dict(), changed.deployment(opened.categories))
    overlaps, counts = [], []
    for model, nms_iou in ((stripped, 0.2), (of_any, 0.2), (of_any, None)):
        path = tmp_path / "predictions.json"
        evaluate(model, data=learned_data, nms_iou=nms_iou, predictions=path)
        rows = json.loads(path.read_text())
        overlaps.append(largest_overlap(rows, across_classes=True))
        counts.append(len(rows))
    assert overlaps[0] > 0.2 + 1e-3 >= overlaps[1] > 0
    # It only asks for suppression that says `--nms`.
    assert overlaps[2] > 0.9
    assert counts[1] < counts[0] <= counts[2]


def test_only_what_scores_above_the_limit_of_the_settings_is_kept(
    learned_run: Path, learned_data: Path, tmp_path: Path
) -> None:
    written = json.loads((learned_run / "eval" / "predictions.json").read_text())
    limit = sorted(row["score"] for row in written)[-5]
    opened = open_run(learned_run)
    changed = opened.config.model_copy(
        update={"evaluation": opened.config.evaluation.model_copy(update={"min_score": limit})}
    )
    path = tmp_path / "model.safetensors"
    write_stripped(path, opened.model.detector.state_dict(), changed.deployment(opened.categories))
    evaluate(path, data=learned_data, predictions=tmp_path / "predictions.json")
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 4


def test_a_run_measures_what_scores_above_its_limit(shapes_tiny: Path, tmp_path: Path) -> None:
    # After a single step no score is that high.
    settings = ("train.max_steps=1", "evaluation.min_score=0.9")
    finished = small_runs.train(shapes_tiny, tmp_path / "run", *settings, overfit=2)
    predictions = finished.directory / "eval" / "predictions.json"
    assert json.loads(predictions.read_text()) == []
    predictions.unlink()
    evaluate(finished.directory)
    assert json.loads(predictions.read_text()) == []


def largest_overlap(predictions: list[dict[str, Any]], *, across_classes: bool = False) -> float:
    """Return the largest IoU of two predictions of one image and category, or of one image.

    Their boxes are x, y, width, height.
    """
    groups: dict[tuple[int, int], list[list[float]]] = {}
    for entry in predictions:
        x, y, width, height = entry["bbox"]
        group = (entry["image_id"], 0 if across_classes else entry["category_id"])
        groups.setdefault(group, []).append([x, y, x + width, y + height])
    overlaps = [box_iou(torch.tensor(boxes), torch.tensor(boxes)).triu(1).max() for boxes in groups.values()]
    return float(torch.stack(overlaps).max())


def test_best_and_last_checkpoint(small_run: Path, shapes_tiny: Path) -> None:
    lines: list[str] = []
    for which in ("best", "last"):
        evaluate(small_run, which=which, data=shapes_tiny, say=lines.append)
    best = (small_run / "checkpoints" / "best").read_text().split()[0]
    assert [line.partition(":")[0] for line in lines] == [best, "step-00000012"]


@pytest.mark.parametrize(
    "change",
    [
        "renamed",
        "added",
        "other ids",
    ],
)
def test_other_categories_are_refused(change: str, learned_run: Path, learned_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(learned_data.parent, data, symlinks=True)
    content = json.loads((data / "two.json").read_text())
    if change == "renamed":
        content["categories"][0]["name"] = "disc"
    elif change == "added":
        content["categories"].append({"id": 1000, "name": "hexagon"})
        content["annotations"][0]["category_id"] = 1000
    else:
        for row in (*content["categories"], *content["annotations"]):
            key = "category_id" if "image_id" in row else "id"
            row[key] += 1000
    (data / "two.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        evaluate(learned_run, data=data / "data.yaml")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("branch", [3, 7])
def test_an_unknown_branch_is_refused(branch: int, learned_run: Path, stripped: Path, learned_data: Path) -> None:
    for model in (learned_run, stripped):
        with pytest.raises(ConfigError, match=f"--branch {branch}") as caught:
            evaluate(model, part=branch, data=learned_data)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("nms", [None, 0.7])
def test_all_parts_at_once_give_what_each_gives_alone(nms: float | None, learned_run: Path, own: Path) -> None:
    options: dict[str, Any] = {"which": "last", "workers": 0, "device": "cpu", "nms_iou": nms, "say": lambda text: None}
    together = evaluate_parts(own, part="all", **options)
    assert list(together) == ["primary", "branch0", "branch1", "branch2"]
    for branch, (name, metrics) in zip((None, 0, 1, 2), together.items(), strict=True):
        (alone,) = evaluate_parts(learned_run, part=branch, **options).values()
        assert metrics.to_json() == alone.to_json(), name
    assert len({str(metrics.to_json()) for metrics in together.values()}) > 1
    # Only what the run itself measures belongs into its folder.
    held = json.loads((own / "eval" / "metrics.json").read_text())
    assert held["AP"] == evaluate(learned_run).values["AP"]


def test_what_all_parts_find_does_not_go_into_one_file(learned_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--predictions") as caught:
        evaluate_parts(learned_run, part="all", predictions=tmp_path / "all.json", say=lambda text: None)
    assert caught.value.exit_code == 2


def test_a_stripped_file_needs_the_data_to_be_named(stripped: Path) -> None:
    with pytest.raises(ConfigError, match="records no data path"):
        evaluate(stripped)


def test_data_without_a_validation_split(learned_run: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(
        f"train_annotations: {shapes_tiny}/annotations/instances_train.json\ntrain_images: {shapes_tiny}/train\n"
    )
    with pytest.raises(DataError, match="no validation split") as caught:
        evaluate(learned_run, data=tmp_path / "data.yaml")
    assert caught.value.exit_code == 3


def test_a_place_for_predictions_that_cannot_be_is_refused_first(tmp_path: Path) -> None:
    # Before the model is read, which here would fail with another error.
    for path, part in ((tmp_path / "absent" / "predictions.json", "no such folder"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=part) as caught:
            evaluate(tmp_path / "no model", predictions=path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "manifest"])
def test_a_damaged_checkpoint_is_refused(damage: str, own: Path) -> None:
    folder = own / "checkpoints" / "step-00000040"
    path = folder / ("MANIFEST.json" if damage == "manifest" else "model.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-1:]
    elif damage == "bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(b"" if damage == "manifest" else bytes(data))
    with pytest.raises(CheckpointError) as caught:
        evaluate(own)
    assert caught.value.exit_code == 4
    assert str(folder) in caught.value.message


def test_a_damaged_stripped_file_is_refused(stripped: Path, learned_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for data in (stripped.read_bytes()[:-3], b"nothing of the kind", b""):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            evaluate(path, data=learned_data)
        assert caught.value.exit_code == 4
        assert str(path) in caught.value.message


def test_something_that_is_no_model(tmp_path: Path, shapes_tiny: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    for path in (tmp_path / "absent", tmp_path / "notes.txt", shapes_tiny):
        with pytest.raises(CheckpointError) as caught:
            evaluate(path)
        assert caught.value.exit_code == 4


def test_an_overfitted_run_is_evaluated_on_its_own_images(shapes_tiny: Path, tmp_path: Path) -> None:
    finished = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=1", overfit=2)
    assert finished.metrics is not None
    lines: list[str] = []
    again = evaluate(finished.directory, say=lines.append)
    assert lines == ["step-00000001: 2 images of instances_train.json"]
    assert again.to_json() == finished.metrics.to_json()


@pytest.mark.parametrize("option", [{"on_bad_data": "skip"}, {"nms_iou": 0.7}, {"part": 0}], ids=str)
def test_only_what_the_run_itself_would_measure_is_kept_in_its_folder(option: dict[str, Any], own: Path) -> None:
    (own / "eval" / "metrics.json").write_text("untouched")
    evaluate(own, **option)
    assert (own / "eval" / "metrics.json").read_text() == "untouched"
    evaluate(own, ema=False)  # a run without averaged weights has only these
    assert (own / "eval" / "metrics.json").read_text() != "untouched"
