"""COCO's numbers on sets small enough to work out by hand, and against pycocotools used directly."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.split import CocoSplit, load_coco
from lora_detr.evaluation import coco_eval
from lora_detr.evaluation.coco_eval import METRICS, MODULES, CocoEvaluator, best_backend
from lora_detr.structures import Detections

BOX = [10.0, 20.0, 30.0, 40.0]


def _content(objects: list[dict[str, Any]], images: int = 2) -> dict[str, Any]:
    return {
        "images": [{"id": 5 + i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": 40, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [{"id": i, **row} for i, row in enumerate(objects)],
    }


def _split(folder: Path, objects: list[dict[str, Any]], images: int = 2) -> CocoSplit:
    path = folder / "val.json"
    path.write_text(json.dumps(_content(objects, images)))
    return load_coco(path, folder, check_files=False)


def _found(*entries: tuple[list[float], float, int]) -> Detections:
    """Return detections from (xywh, score, label)."""
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in entries]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in entries])
    labels = torch.tensor([label for _, _, label in entries], dtype=torch.int64)
    return Detections(boxes, scores, labels, torch.arange(len(entries)))


def _random_case(folder: Path, seed: int) -> tuple[CocoSplit, dict[int, Detections]]:
    chance = random.Random(seed)

    def box() -> list[float]:
        return [float(chance.randint(0, 90)), float(chance.randint(0, 90)), *(chance.choice((9.0, 40.0, 100.0)),) * 2]

    objects: list[dict[str, Any]] = [
        {"image_id": 5 + chance.randrange(6), "category_id": chance.choice((7, 40)), "bbox": box()} for _ in range(25)
    ]
    for row in objects:
        row |= {"area": row["bbox"][2] * row["bbox"][3] * 0.8, "iscrowd": int(chance.random() < 0.15)}
    split = _split(folder, objects, images=6)
    found = {}
    for image_id in split.image_ids:
        near = [
            ([v + chance.choice((0.0, 1.0, 5.0)) for v in row["bbox"]], round(chance.random(), 1), chance.randrange(2))
            for row in objects
            if row["image_id"] == image_id
        ]
        found[image_id] = _found(*near, *((box(), round(chance.random(), 1), chance.randrange(2)) for _ in range(4)))
    return split, found


def _fill(split: CocoSplit, found: dict[int, Detections]) -> CocoEvaluator:
    evaluator = CocoEvaluator(split)
    for image_id, detections in found.items():
        evaluator.add(image_id, detections)
    return evaluator


def test_perfect_detections(tmp_path: Path) -> None:
    split = _split(
        tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX}, {"image_id": 6, "category_id": 40, "bbox": BOX}]
    )
    metrics = _fill(split, {5: _found((BOX, 0.9, 0)), 6: _found((BOX, 0.8, 1))}).compute()
    assert tuple(metrics.values) == METRICS
    assert metrics.values["AP"] == pytest.approx(1.0)
    assert metrics.values["APm"] == pytest.approx(1.0)
    assert metrics.values["APs"] == metrics.values["APl"] == -1  # 1200 square pixels are medium
    table = [(row.category_id, row.name, row.objects, round(row.AP, 6)) for row in metrics.per_class]
    assert table == [(7, "cat", 1, 1.0), (40, "dog", 1, 1.0)]
    assert metrics.to_json()["per_class"][0]["AP50"] == pytest.approx(1.0)


def test_known_value(tmp_path: Path) -> None:
    """One of two objects found, at IoU 0.75, after a wrong detection of a higher score.

    Precision is 1/2 up to recall 1/2, which is 51 of 101 points, at six of ten thresholds (0.5 to 0.75).
    """
    objects: list[dict[str, Any]] = [
        {"image_id": 5, "category_id": 7, "bbox": [10, 10, 40, 40]},
        {"image_id": 6, "category_id": 7, "bbox": BOX},
    ]
    split = _split(tmp_path, objects)
    evaluator = _fill(split, {5: _found(([100, 100, 20, 20], 0.9, 0), ([10, 10, 40, 30], 0.5, 0)), 6: _found()})
    metrics = evaluator.compute()
    at_one_threshold = 0.5 * 51 / 101
    assert metrics.values["AP50"] == pytest.approx(at_one_threshold)
    assert metrics.values["AP"] == pytest.approx(0.6 * at_one_threshold)
    assert metrics.values["AR100"] == pytest.approx(0.6 * 0.5)
    cat, dog = metrics.per_class
    assert round(cat.AP, 6) == round(0.6 * at_one_threshold, 6)
    assert (dog.AP, dog.objects) == (-1.0, 0)


def test_detections_in_crowd_regions_are_ignored(tmp_path: Path) -> None:
    objects: list[dict[str, Any]] = [
        {"image_id": 5, "category_id": 7, "bbox": BOX},
        {"image_id": 5, "category_id": 7, "bbox": [100, 100, 90, 90], "iscrowd": 1},
    ]
    found = {5: _found(([110, 110, 20, 20], 0.99, 0), ([140, 120, 20, 20], 0.98, 0), (BOX, 0.5, 0))}
    metrics = _fill(_split(tmp_path, objects), found).compute()
    assert metrics.values["AP"] == pytest.approx(1.0)
    assert metrics.per_class[0].objects == 1


def test_nothing_found_and_nothing_to_find(tmp_path: Path) -> None:
    split = _split(tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX}])
    assert CocoEvaluator(split).compute().values["AP"] == 0
    assert _fill(split, {5: _found()}).compute().values["AR100"] == 0
    crowd = _split(tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX, "iscrowd": 1}])
    assert _fill(crowd, {5: _found((BOX, 0.9, 0))}).compute().values["AP"] == -1  # N09
    assert CocoEvaluator(_split(tmp_path, [])).compute().values["AP"] == -1


def test_annotation_id_zero_counts_as_a_match(tmp_path: Path) -> None:
    split = _split(tmp_path, [{"id": 0, "image_id": 5, "category_id": 7, "bbox": BOX}])
    assert _fill(split, {5: _found((BOX, 0.9, 0))}).compute().values["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_files(tmp_path: Path, seed: int) -> None:
    split, found = _random_case(tmp_path, seed)
    evaluator = _fill(split, found)
    evaluator.write_predictions(tmp_path / "predictions.json")
    content = json.loads((tmp_path / "val.json").read_text())
    for row in content["annotations"]:
        row["id"] += 1
    (tmp_path / "numbered.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "numbered.json"))
        truth.dataset["info"] = {}
        direct = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    metrics = evaluator.compute()
    assert list(metrics.values.values()) == direct.stats.tolist()
    assert 0 < metrics.values["AP"] < 1
    measured = [row.AP for row in metrics.per_class if row.AP >= 0]
    assert sum(measured) / len(measured) == pytest.approx(metrics.values["AP"])


def test_predictions_carry_original_ids_and_pixels(tmp_path: Path) -> None:
    split = _split(tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX}])
    evaluator = _fill(split, {6: _found((BOX, 0.25, 1)), 5: _found((BOX, 0.25, 0), (BOX, 0.5, 1))})
    entries = [(row["image_id"], row["category_id"], row["score"]) for row in evaluator.predictions()]
    assert entries == [(5, 40, 0.5), (5, 7, 0.25), (6, 40, 0.25)]
    assert evaluator.predictions()[0]["bbox"] == BOX
    evaluator.write_predictions(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == evaluator.predictions()
    CocoEvaluator(split).write_predictions(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == []


def test_coco91_labels(tmp_path: Path) -> None:
    content = _content([{"image_id": 5, "category_id": 18, "bbox": BOX}])
    content["categories"] = [{"id": 18, "name": "dog"}]
    (tmp_path / "val.json").write_text(json.dumps(content))
    split = load_coco(tmp_path / "val.json", tmp_path, check_files=False)
    split = split.with_categories(CategoryMap.coco91(split.categories.names_by_id))
    evaluator = _fill(split, {5: _found((BOX, 0.9, 18), (BOX, 0.8, 12))})
    assert evaluator.compute().values["AP"] == pytest.approx(1.0)
    assert [row["category_id"] for row in evaluator.predictions()] == [18, 12]
    assert len(evaluator.compute().per_class) == 80


def test_order_and_ranks_do_not_matter_r5_r6(tmp_path: Path) -> None:
    split, found = _random_case(tmp_path, seed=7)
    whole = _fill(split, found)
    whole.write_predictions(tmp_path / "whole.json")
    expected = (tmp_path / "whole.json").read_bytes()
    for seed in range(5):
        order = list(found)
        random.Random(seed).shuffle(order)
        ranks = [_fill(split, {i: found[i] for i in order[k::2] + order[:1]}) for k in range(2)]
        joined = CocoEvaluator(split)
        for rank in ranks:  # image order[0] was evaluated on both
            joined.add_rows(rank.rows())
        joined.write_predictions(tmp_path / "joined.json")
        assert (tmp_path / "joined.json").read_bytes() == expected
        assert joined.compute() == whole.compute()


FAR = 2**53
NEIGHBOURS = (FAR + 1, FAR + 2, 2**63 - 1, 2**63 - 2, -(2**63) + 1, -(2**63) + 2, 0, -1)
IDS = st.one_of(st.sampled_from(NEIGHBOURS), st.integers(-(2**63) + 1, 2**63 - 1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(IDS, min_size=6, max_size=6, unique=True),
    categories=st.lists(IDS, min_size=2, max_size=2, unique=True),
    annotations=st.lists(IDS, min_size=25, max_size=25, unique=True),
    ranks=st.sampled_from((1, 2)),
)
def test_ids_of_63_bits_keep_their_value_and_move_no_number(
    images: list[int], categories: list[int], annotations: list[int], ranks: int, tmp_path: Path
) -> None:
    """Integers beyond 2 ** 53 do not survive a float64: neighbours would fall together."""
    split, found = _random_case(tmp_path, seed=3)
    expected = {backend: _fill(split, found).compute(backend).values for backend in MODULES}
    new_image = dict(zip(range(5, 11), sorted(images), strict=True))
    new_category = dict(zip((7, 40), sorted(categories), strict=True))
    content = json.loads((tmp_path / "val.json").read_text())
    for row in content["images"]:
        row["id"] = new_image[row["id"]]
    for row in content["categories"]:
        row["id"] = new_category[row["id"]]
    for row, new in zip(content["annotations"], annotations, strict=True):
        row |= {"id": new, "image_id": new_image[row["image_id"]], "category_id": new_category[row["category_id"]]}
    (tmp_path / "far.json").write_text(json.dumps(content))
    far = load_coco(tmp_path / "far.json", tmp_path, check_files=False)
    assert list(far.image_ids) == sorted(images)
    parts = [_fill(far, {new_image[i]: found[i] for i in list(found)[rank::ranks]}) for rank in range(ranks)]
    joined = CocoEvaluator(far)
    for part in parts:
        joined.add_rows(part.rows())
    assert {backend: joined.compute(backend).values for backend in MODULES} == expected
    assert [row.category_id for row in joined.compute().per_class] == sorted(categories)
    assert {row["image_id"] for row in joined.predictions()} == {new_image[i] for i in found}
    assert {row["category_id"] for row in joined.predictions()} <= set(categories)
    assert [count.id for count in far.report.per_category] == sorted(categories)


def test_subset_of_images(tmp_path: Path) -> None:
    objects = [{"image_id": i, "category_id": 7, "bbox": BOX} for i in (5, 6)]
    split = _split(tmp_path, objects)
    assert _fill(split, {5: _found((BOX, 0.9, 0))}).compute().values["AR100"] == pytest.approx(0.5)
    part = split.subset([5])
    assert _fill(part, {5: _found((BOX, 0.9, 0))}).compute().values["AR100"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image id 6"):
        CocoEvaluator(part).add(6, _found())


def test_many_detections_of_one_image_s05(tmp_path: Path) -> None:
    """COCO's AP counts the 100 best of each category: a hit at place 150 is not seen."""
    split = _split(tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX}])
    misses = [([100.0, 100.0, 10.0, 10.0], 0.9, 0)] * 149
    evaluator = _fill(split, {5: _found(*misses, (BOX, 0.5, 0))})
    assert evaluator.compute().values["AP"] == 0
    assert len(evaluator.predictions()) == 150
    others = [(box, score, 1) for box, score, _ in misses]
    assert _fill(split, {5: _found(*others, (BOX, 0.5, 0))}).compute().values["AP"] == pytest.approx(1.0)


class TestHotcoco:
    """The fast package against the reference: every number, bit for bit."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("hotcoco")

    @pytest.mark.parametrize("seed", range(12))
    def test_equals_pycocotools(self, tmp_path: Path, seed: int) -> None:
        evaluator = _fill(*_random_case(tmp_path, seed))
        assert evaluator.compute("hotcoco").to_json() == evaluator.compute("pycocotools").to_json()

    @pytest.mark.parametrize("objects", [[], [{"image_id": 5, "category_id": 7, "bbox": BOX, "iscrowd": 1}]])
    @pytest.mark.parametrize("found", [[], [(BOX, 0.9, 0)]])
    def test_nothing_to_find_or_nothing_found(
        self, tmp_path: Path, objects: list[dict[str, Any]], found: list[tuple[list[float], float, int]]
    ) -> None:
        split = _split(tmp_path, [{"area": 1200.0, **row} for row in objects])
        evaluator = _fill(split, {5: _found(*found)})
        assert evaluator.compute("hotcoco").to_json() == evaluator.compute("pycocotools").to_json()

    @pytest.mark.parametrize("scores", [[0.5] * 6, [0.1, 0.9, 0.5, 0.5, 0.9, 0.3]])
    def test_equal_scores_and_many_of_an_object(self, tmp_path: Path, scores: list[float]) -> None:
        split = _split(tmp_path, [{"image_id": 5, "category_id": 7, "bbox": BOX, "area": 1200.0}])
        boxes = [[10.0 + i, 20.0, 30.0, 40.0] for i in range(6)]
        evaluator = _fill(split, {5: _found(*((box, s, 0) for box, s in zip(boxes, scores, strict=True)))})
        assert evaluator.compute("hotcoco").to_json() == evaluator.compute("pycocotools").to_json()

    def test_more_than_a_hundred_detections_of_a_class(self, tmp_path: Path) -> None:
        chance = random.Random(0)
        split, _ = _random_case(tmp_path, 3)
        found = {}
        for image_id in split.image_ids:
            entries = []
            for _ in range(300):
                box = [chance.uniform(0, 100), chance.uniform(0, 100), chance.uniform(5, 90), chance.uniform(5, 90)]
                entries.append((box, chance.random(), chance.randrange(2)))
            found[image_id] = _found(*entries)
        evaluator = _fill(split, found)
        assert evaluator.compute("hotcoco").to_json() == evaluator.compute("pycocotools").to_json()

    def test_it_is_taken_where_it_is_installed_and_says_nothing(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert best_backend() == "hotcoco"
        _fill(*_random_case(tmp_path, 0)).compute()
        assert capfd.readouterr() == ("", "")


def test_without_the_fast_package_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_eval, "find_spec", lambda name: None)
    assert best_backend() == "pycocotools"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_leaves_the_fast_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads stay in the parent."""
    monkeypatch.setattr(coco_eval, "find_spec", lambda name: name)
    assert best_backend() == "hotcoco"
    child = os.fork()
    if child == 0:
        os._exit(best_backend() != "pycocotools")
    assert os.waitpid(child, 0)[1] == 0
