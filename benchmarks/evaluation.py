"""Compare pycocotools with hotcoco, and look for work of ours around them that grows faster than the data.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --images 1000 --rounds 3

Objects and detections are made up, with a seed: 80 classes, about seven objects an image, detections near them. Both
packages are given the same dictionaries, those of the program. ``load`` is building the indices of ground truth and
detections, ``evaluate`` all that follows up to the twelve numbers; ``ratio`` is of both together, to pycocotools.
``CocoEvaluator.compute`` is what the program calls, all of it. ``difference`` is the largest among the twelve numbers
from those of pycocotools, and must be 0.

The other rows are our own part for a quarter, half and all of the images. Their ratio is time *an image*, as a multiple
of that with a quarter: 1 where time grows with the number of images, 4 in the last row where it grows with its square.

pycocotools computes in one thread, hotcoco in all cores unless ``--threads`` says otherwise. Before the clock runs
everything is done once with a few images; a whole round of pycocotools takes about a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import Row, give, parse
from lora_detr.data.coco.split import CocoSplit, load_coco
from lora_detr.evaluation.coco_eval import METRICS, MODULES, Backend, CocoEvaluator, evaluated, index_of
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.structures import Detections

CLASSES, OBJECTS = 80, 7
WIDTH, HEIGHT = 640, 480
CROWDS = 0.015
"""Share of objects that are crowd regions, about that of COCO."""

FIRST_BACKEND = "pycocotools"
COMPUTE = "CocoEvaluator.compute"
WARM_UP_IMAGES = 8
OWN_ROUNDS = 5
"""Rounds of our own part at least: one during which Python looks for unused objects takes several times as long."""


@dataclass(frozen=True)
class Case:
    """Made-up ground truth and what was found.

    Attributes:
        split: ground truth.
        found: detections by image id.
    """

    split: CocoSplit
    found: dict[int, Detections]

    def first(self, images: int) -> Case:
        """Return the part of the first images."""
        ids = self.split.image_ids[:images]
        return Case(self.split.subset(ids), {i: self.found[i] for i in ids})

    def evaluator(self) -> CocoEvaluator:
        """Return an evaluator to which everything was added."""
        evaluator = CocoEvaluator(self.split)
        for image_id, detections in self.found.items():
            evaluator.add(image_id, detections)
        return evaluator


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Attributes:
        load: seconds; None where it cannot be told apart.
        evaluate: seconds.
        values: the twelve numbers.
    """

    load: float | None
    evaluate: float
    values: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of both."""
        return (self.load or 0.0) + self.evaluate


def synthetic_case(images: int, detections: int, seed: int = 0) -> Case:
    """Draw objects, and detections near them; a third of the labels are wrong, and scores fall with distance.

    Args:
        images: at least one, of 640x480 pixels.
        detections: of each image.
        seed: of all draws.
    """
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found = {}
    for image_id in range(1, images + 1):
        count = int(draw.integers(1, 2 * OBJECTS))
        sizes = np.exp(draw.uniform(np.log(8), np.log(300), (count, 2)))  # small and large ones, as COCO's areas are
        low = draw.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
        labels = draw.integers(0, CLASSES, count)
        for box, label in zip(np.concatenate((low, sizes), axis=1).round(2).tolist(), labels.tolist(), strict=True):
            row: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            row |= {"bbox": box, "area": 0.7 * box[2] * box[3], "iscrowd": int(draw.random() < CROWDS)}
            annotations.append(row)
        near = draw.integers(0, count, detections)
        distance = draw.exponential(0.15, detections)
        shift = draw.normal(size=(detections, 4)) * distance[:, None]
        corner = low[near] + shift[:, :2] * sizes[near]
        size = sizes[near] * np.exp(shift[:, 2:])
        wrong = draw.random(detections) < 1 / 3
        guessed = np.where(wrong, draw.integers(0, CLASSES, detections), labels[near])
        scores = np.exp(-distance - wrong - draw.exponential(0.5, detections))
        order = np.argsort(-scores)
        boxes = np.concatenate((corner, corner + size), axis=1)[order].astype(np.float32)
        found[image_id] = Detections(
            torch.from_numpy(boxes),
            torch.from_numpy(scores[order].astype(np.float32)),
            torch.from_numpy(guessed[order]),
            torch.arange(detections),
        )
    files = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)]
    categories = [{"id": i, "name": f"category {i}"} for i in range(1, CLASSES + 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.json"
        content = {"images": files, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content), encoding="utf-8")
        return Case(load_coco(path, Path(folder), check_files=False), found)


def backends() -> list[Backend]:
    """Return the packages that are there, pycocotools first."""
    return [name for name, (module, _) in MODULES.items() if importlib.util.find_spec(module.split(".")[0])]


def by_backend(backend: Backend, evaluator: CocoEvaluator) -> Measured:
    """Evaluate with one of the packages; making the data sets that it is given does not count."""
    datasets = evaluator.datasets()
    start = time.perf_counter()
    indices = [index_of(backend, dataset) for dataset in datasets]
    loaded = time.perf_counter()
    stats = evaluated(backend, *indices).stats
    return Measured(loaded - start, time.perf_counter() - loaded, tuple(map(float, stats)))


def by_evaluator(evaluator: CocoEvaluator) -> Measured:
    """Evaluate as the program does."""
    start = time.perf_counter()
    values = evaluator.compute().values
    return Measured(None, time.perf_counter() - start, tuple(values[name] for name in METRICS))


def backend_rows(case: Case, rounds: int) -> list[Row]:
    """Return a row for each package that is there, and one for what the program calls."""
    _all_ways(case.first(WARM_UP_IMAGES), 1)
    measured = _all_ways(case, rounds)
    references = measured[FIRST_BACKEND]
    return [_row(name, len(case.split), _columns(turns, references)) for name, turns in measured.items()]


def own_rows(case: Case, rounds: int) -> list[Row]:
    """Return a row for each part of ours and each of three sizes."""
    sizes = [max(1, len(case.split) // parts) for parts in (4, 2, 1)]
    cases = [case.first(size) for size in sizes]
    evaluators = [one.evaluator() for one in cases]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.json"
        parts: dict[str, Sequence[Callable[[], object]]] = {
            "CocoEvaluator.add": [one.evaluator for one in cases],
            "CocoEvaluator.predictions": [one.predictions for one in evaluators],
            "CocoEvaluator.write_predictions": [partial(one.write_predictions, path) for one in evaluators],
        }
        for name, ways in parts.items():
            for size, timing in zip(sizes, interleaved(ways, max(rounds, OWN_ROUNDS)), strict=True):
                share = sizes[0] / size
                columns = {"seconds": timing.seconds, "ratio": timing.ratio * share}
                columns |= {"lowest": timing.lowest * share, "highest": timing.highest * share}
                rows.append(_row(name, size, columns))
    return rows


def _all_ways(case: Case, rounds: int) -> dict[str, list[Measured]]:
    """Return one measurement a round of each way, all of them in turn."""
    evaluator = case.evaluator()
    ways: dict[str, Callable[[], Measured]] = {name: partial(by_backend, name, evaluator) for name in backends()}
    ways[COMPUTE] = partial(by_evaluator, evaluator)
    measured: dict[str, list[Measured]] = {name: [] for name in ways}

    def kept(name: str) -> None:
        measured[name].append(ways[name]())

    interleaved([partial(kept, name) for name in ways], rounds, warm_up=0)
    return measured


def _columns(turns: Sequence[Measured], references: Sequence[Measured]) -> dict[str, float]:
    """Return the columns of a way from its rounds and those of pycocotools."""
    ratios = [turn.seconds / reference.seconds for turn, reference in zip(turns, references, strict=True)]
    values, expected = turns[0].values, references[0].values
    columns = {
        "seconds": statistics.median(turn.seconds for turn in turns),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "AP": values[0],
        "difference": max(abs(a - b) for a, b in zip(values, expected, strict=True)),
    }
    loads = [turn.load for turn in turns if turn.load is not None]
    if loads:
        columns["seconds_load"] = statistics.median(loads)
        columns["seconds_evaluate"] = statistics.median(turn.evaluate for turn in turns)
    return columns


def _row(way: str, images: int, columns: dict[str, float]) -> Row:
    names = ("seconds_load", "seconds_evaluate", "seconds", "ratio", "lowest", "highest", "AP", "difference")
    return {"way": way, "images": images, **{name: columns.get(name) for name in names}}


def main() -> None:
    """Measure and give the rows; say so if numbers differ, or hotcoco is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help=f"of whole evaluations; our part: {OWN_ROUNDS} at least")
    given = parse(parser)
    if given.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(given.threads)  # which hotcoco reads when it starts its own
    case = synthetic_case(given.images, given.detections, given.seed)
    rows = [*backend_rows(case, given.rounds), *own_rows(case, given.rounds)]
    give(rows, given)
    missing = sorted(set(MODULES) - set(backends()))
    if missing:
        print(f"not compared: {', '.join(missing)} is not installed; pip install {' '.join(missing)}", file=sys.stderr)
    different = [row for row in rows if row["difference"]]
    for row in different:
        print(f"{row['way']}: differs from {FIRST_BACKEND} by up to {row['difference']}", file=sys.stderr)
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
