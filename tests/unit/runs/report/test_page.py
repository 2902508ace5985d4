"""The page about a run: complete, valid whatever the names, legible with many classes, and small."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_detr.checkpoints.opened import OpenedRun, open_run
from lora_detr.data.coco.report import Problem
from lora_detr.data.coco.split import CocoSplit, load_coco
from lora_detr.errors import ConfigError, DataError
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator
from lora_detr.evaluation.confusion import confusion_of
from lora_detr.evaluation.detect import left_out_lines
from lora_detr.evaluation.operating_point import measure
from lora_detr.runs.report.page import Evaluation, page, write_report
from lora_detr.runs.report.pictures import MAX_BYTES, extremes
from lora_detr.runs.report.results import MAX_CONFUSED, shown_matrix
from lora_detr.structures import Detections
from tests import small_runs
from tests.html_pages import Page, checked

HOSTILE = "<script>alert('x')</script>\"&\u202e$x_1$ 猫"
LIMIT = 5_000_000


@pytest.fixture(scope="module")
def reported(learned_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of a run with a stripped file and diagnostics, and the page about it."""
    run = Path(shutil.copytree(learned_run, tmp_path_factory.mktemp("reported") / "run"))
    strip = {"source": "step-00000040", "parameters_before": 5_345_596, "parameters_after": 5_050_684}
    (run / "strip_report.json").write_text(json.dumps(strip))
    lines = [
        {
            "step": step,
            "targets": 3,
            "positives": {"primary": [1.0, 1.0], "branch0": [4.0, 5.0], "branch1": [2.0, None]},
            "uncovered": {"primary": [0.0, 0.0], "branch0": [0.1, 0.2], "branch1": [0.0, 0.1]},
            "jaccard": {"primary|branch0": [0.2, 0.3], "branch0|branch1": [0.5, step / 100]},
            "cosine_all": {"branch0": 0.3, "branch1": None},
            "norm_ratio": {"branch0": 0.3, "branch1": 0.5},
        }
        for step in (10, 20, 40)
    ]
    (run / "diagnostics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said: list[str] = []
    written = write_report(run, say=said.append, device="cpu")
    assert written == run / "report.html"
    assert said == ["step-00000040: 2 images of two.json"]
    assert {path: path.read_bytes() for path in before} == before
    return run, written.read_text(encoding="utf-8")


def test_a_page_is_valid_small_and_has_every_part(reported: tuple[Path, str]) -> None:
    found = checked(reported[1])
    assert len(reported[1].encode()) < LIMIT
    sections = [section["id"] for section in found.of("section")]
    assert sections == ["figures", "accuracy", "errors", "images", "training", "branches", "run"]
    assert {link["href"] for link in found.of("a")} == {"#main", *(f"#{name}" for name in sections)}
    charts = re.findall(r"<figcaption>([^<]+)</figcaption>", reported[1])
    assert {"Total loss", "COCO AP, validation", "Learning rate"} <= set(charts)
    assert "Overlap of positives (Jaccard)" in charts
    assert "Cosine of gradients with the primary&#39;s" in charts
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in found.of("img"))
    assert len(found.of("img")) == 2 * 2
    command = (reported[0] / "command.txt").read_text().strip()
    for text in (command, "numpy", "optimizer:", "step-00000040", "5.05 M", "5.35 M before strip"):
        assert text in found.text


def test_figures_are_those_of_eval(reported: tuple[Path, str]) -> None:
    run, text = reported
    stored = json.loads((run / "eval" / "metrics.json").read_text())
    values = dict(re.findall(r'<dt>([^<]+)</dt><dd class="value">([^<]+)</dd>', text))
    assert values["AP"] == f"{stored['AP']:.3f}"
    assert values["AP50"] == f"{stored['AP50']:.3f}"
    assert values["AP with suppression"] == f"{stored['AP_nms']:.3f}"
    assert values["Duplicate rate"] == f"{100 * stored['duplicate_rate']:.1f} %"
    assert values["F1 at the operating point"] == f"{stored['operating_point']['f1']:.3f}"
    assert values["Parameters"] == "5.05 M"
    for row in stored["per_class"]:
        assert f"{row['AP']:.3f}" in text or row["AP"] < 0


def test_the_definitions_have_the_thresholds(reported: tuple[Path, str]) -> None:
    text = " ".join(checked(reported[1]).text.split())
    assert "right: IoU of 0.5 or more with an object of its class that no better detection is on" in text
    assert "poorly placed: IoU from 0.1 to below 0.5 with an object of its class" in text


def test_a_page_is_the_same_twice(reported: tuple[Path, str], tmp_path: Path) -> None:
    write_report(reported[0], say=lambda text: None, device="cpu", output=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == reported[1]


def test_without_validation_split_strip_and_diagnostics_the_training_is_shown(
    shapes_tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(
        f"train_annotations: {shapes_tiny}/annotations/instances_train.json\ntrain_images: {shapes_tiny}/train\n"
    )
    run = small_runs.train(data, tmp_path / "run", "train.epochs=1").directory
    said: list[str] = []
    text = write_report(run, say=said.append, device="cpu").read_text(encoding="utf-8")
    found = checked(text)
    assert [section["id"] for section in found.of("section")] == ["figures", "training", "run"]
    assert "no validation split" in found.text
    assert "loradetr strip has not been run yet" in found.text
    assert len(said) == 1
    with pytest.raises(DataError, match="no validation split"):  # data that was named must have one
        write_report(run, say=said.append, device="cpu", data=data)


def test_a_run_without_logs_has_a_page(own_run: Path) -> None:
    for name in ("metrics.jsonl", "log.txt", "results.csv", "env.json", "command.txt", "data_report.json"):
        (own_run / name).unlink()
    text = write_report(own_run, say=lambda text: None, device="cpu").read_text(encoding="utf-8")
    sections = [section["id"] for section in checked(text).of("section")]
    assert sections == ["figures", "accuracy", "errors", "images", "run"]


def test_damaged_and_hostile_records_are_escaped_or_left_out(own_run: Path) -> None:
    (own_run / "strip_report.json").write_text(json.dumps({"parameters_before": "<b>", "source": ["<i>"]}))
    (own_run / "env.json").write_text(json.dumps({"<script>": "</dd><script>", "packages": {"a": None, "b": [1]}}))
    (own_run / "data_report.json").write_text(json.dumps({"train": [], "val": {"images": "<b>"}, "warnings": ["</p>"]}))
    (own_run / "command.txt").write_bytes(b"</pre><script>alert(1)</script> \xff \x1b[31m\n")
    text = write_report(own_run, say=lambda text: None, device="cpu").read_text(encoding="utf-8")
    assert "</pre><script>" in checked(text).text
    assert "\x1b" not in text


def make_data(folder: Path, names: list[str], file_name: str = "{}.png", used: int | None = None) -> CocoSplit:
    """Write six images with four objects each, of the first ``used`` classes in turn."""
    count = len(names) if used is None else used
    images, rows = [], []
    for i in range(6):
        images.append({"id": i, "file_name": file_name.format(i), "width": 200, "height": 100})
        Image.new("RGB", (200, 100), (40 * i, 90, 160)).save(folder / file_name.format(i))
        for j in range(4):
            category = 1 + (4 * i + j) % count
            box = [50 * j + 5, 20, 40, 50]
            rows.append({"id": len(rows) + 1, "image_id": i, "category_id": category, "bbox": box, "area": 2000})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return load_coco(path, folder)


def evaluated(split: CocoSplit, run: OpenedRun, left_out: int | None = None) -> Evaluation:
    """Return what a detector that is right half of the time would give, without an image that cannot be read."""
    generator = np.random.default_rng(0)
    count = split.categories.num_classes
    evaluators = {iou: CocoEvaluator(split) for iou in (None, SUPPRESSION_IOU)}
    for record in split.records:
        boxes = torch.from_numpy(record.boxes_xyxy_pixels.astype(np.float64)).repeat(2, 1)
        boxes += torch.from_numpy(generator.uniform(-6, 6, tuple(boxes.shape)))
        labels = np.array([split.categories.label_of(int(i)) for i in record.category_ids] * 2)
        labels = np.where(generator.uniform(size=len(labels)) < 0.5, labels, generator.integers(0, count, len(labels)))
        scores = torch.from_numpy(np.sort(generator.uniform(0.3, 1.0, len(labels)))[::-1].copy())
        for evaluator in evaluators.values():
            found = Detections(boxes, scores, torch.from_numpy(labels), torch.arange(len(labels)))
            evaluator.add(record.id, found)
    for evaluator in evaluators.values() if left_out is not None else ():
        evaluator.leave_out({left_out: Problem("D18", f"{left_out}.png cannot be read")})
    config = run.deployment.model_copy(
        update={"category_ids": split.categories.ids, "category_names": split.categories.names, "operating_point": None}
    )
    metrics = measure(evaluators, config)
    assert metrics.usage is not None
    plain = evaluators[None]
    return Evaluation(
        metrics,
        plain,
        confusion_of(plain, metrics.usage.point, split.categories, "per-class"),
        "x",
        left_out_lines(plain),
    )


@pytest.fixture
def opened(small_run: Path) -> OpenedRun:
    """A run whose folder has logs."""
    return open_run(small_run)


def rendered(split: CocoSplit, run: OpenedRun) -> tuple[str, Page]:
    text = page(run, evaluated(split, run))
    assert len(text.encode()) < LIMIT
    return text, checked(text)


def test_names_of_any_kind_are_escaped(tmp_path: Path, opened: OpenedRun) -> None:
    names = [HOSTILE, "_hidden", "</th><td onclick=x>", "a" * 500, "{{ 7 * 7 }}"]
    text, found = rendered(make_data(tmp_path, names, "<img src=x onerror=alert(1)>{}.png"), opened)
    assert "<script" not in text
    assert "\u202e" not in text
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert html.escape(shown, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert {"{{ 7 * 7 }}", "</th><td onclick=x>"} <= {cell.get("title") for cell in found.of("th")}
    assert any("<img src=x onerror=alert(1)>0.png" in picture["alt"] for picture in found.of("img"))


def test_with_80_classes_the_most_confused_have_a_row_and_the_rest_share_one(tmp_path: Path, opened: OpenedRun) -> None:
    split = make_data(tmp_path, [f"class {i}" for i in range(80)], used=24)
    evaluation = evaluated(split, opened)
    matrix = shown_matrix(evaluation.confusion)
    assert len(matrix.names) == MAX_CONFUSED + 2
    assert matrix.names[-2:] == ["other classes", "background"]
    counts = [[cell.count if cell else 0 for cell in row] for row in matrix.rows]
    assert sum(map(sum, counts)) == evaluation.confusion.matrix.sum()
    # Those shown are confused at least as often as those that are not.
    wrong = evaluation.confusion.matrix[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    mutual = dict(zip(split.categories.names, wrong.sum(0) + wrong.sum(1), strict=True))
    shown = set(matrix.names[:-2])
    assert min(mutual[name] for name in shown) >= max(mutual[name] for name in mutual.keys() - shown)
    text, found = rendered(split, opened)
    assert "80 classes, the weakest first" in found.text
    assert "others are together" in found.text
    assert text.count("<tr>") < 300


def test_the_whole_matrix_is_shown_where_it_fits(tmp_path: Path, opened: OpenedRun) -> None:
    evaluation = evaluated(make_data(tmp_path, ["cat", "dog", "cow"], used=2), opened)
    matrix = shown_matrix(evaluation.confusion)
    # A class without objects is there if something was found as it.
    assert list(matrix.names) == ["cat", "dog", "cow", "background"]
    assert matrix.left_out == 0
    assert matrix.rows[-1][-1] is None
    rendered(make_data(tmp_path, ["cat", "dog", "cow"], used=2), opened)


def test_an_image_that_was_left_out_is_reported_and_not_drawn(tmp_path: Path, opened: OpenedRun) -> None:
    split = make_data(tmp_path, ["cat", "dog"])
    (tmp_path / "0.png").write_bytes(b"")
    found = checked(page(opened, evaluated(split, opened, left_out=0)))
    assert "left out: 0.png cannot be read" in found.text
    drawn = re.findall(r"Ground truth of (\S+):", " ".join(picture["alt"] for picture in found.of("img")))
    assert sorted(drawn) == ["1.png", "2.png", "3.png", "4.png", "5.png"]


def test_data_without_objects_has_a_page(tmp_path: Path, opened: OpenedRun) -> None:
    split = make_data(tmp_path, ["cat", "dog"])
    content = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": []}))
    split = load_coco(tmp_path / "val.json", tmp_path)
    _, found = rendered(split, opened)
    assert "nothing to measure" in found.text


def test_a_page_with_photos_of_noise_keeps_to_its_size(tmp_path: Path, opened: OpenedRun) -> None:
    split = make_data(tmp_path, ["cat"])
    generator = np.random.default_rng(0)
    content = json.loads((tmp_path / "val.json").read_text())
    for image in content["images"]:
        image |= {"width": 900, "height": 700}
        Image.fromarray(generator.integers(0, 255, (700, 900, 3), dtype=np.uint8)).save(tmp_path / image["file_name"])
    (tmp_path / "val.json").write_text(json.dumps(content))
    split = load_coco(tmp_path / "val.json", tmp_path)
    _, found = rendered(split, opened)
    sizes = [len(picture["src"]) for picture in found.of("img")]
    assert len(sizes) == 2 * 6
    assert max(sizes) <= MAX_BYTES * 4 / 3 + 100


def test_best_and_worst_share_no_image() -> None:
    class One:
        def __init__(self, f1: float | None, errors: int = 0, objects: int = 1) -> None:
            self.f1, self.errors, self.objects = f1, errors, objects

    images: Any = [One(1.0, 0, 2), One(0.5, 3), One(None), One(0.5, 4), One(1.0, 0, 9), One(0.0, 1)]
    assert extremes(images, 2) == ([4, 0], [5, 3])
    assert extremes(images[:1]) == ([], [0])
    assert extremes([]) == ([], [])


@pytest.mark.parametrize(
    ("output", "part"), [("page.txt", "ends in .html"), ("absent/page.html", "no such folder"), (".", "is a folder")]
)
def test_a_place_that_is_none_of_a_page_is_refused_before_the_evaluation(
    small_run: Path, tmp_path: Path, output: str, part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        write_report(small_run, say=lambda text: None, output=tmp_path / output)
    assert not any(tmp_path.iterdir())


def test_what_has_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stripped.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a run directory or a checkpoint, found a stripped file"):
        write_report(path, say=lambda text: None)
