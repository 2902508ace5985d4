"""Evaluation on any number of processes, and of files in any order: the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from lora_detr.data.synthetic.sets import SHAPES, generate
from lora_detr.json_value import JSON
from lora_detr.runs.evaluate import PRIMARY, evaluate_parts
from tests import small_runs
from tests.commands import free_port
from tests.soak import runs
from tests.soak.harness import Part, shared_folder

IMAGES = 17
BATCH = 2
# Images, processes, readers of images. Those that the default test run takes come first.
_SHORT = (*product((1, 2, IMAGES), (1, 2), (0,)), (5, 3, 0), (5, 2, 2))
_ALL = product(range(1, IMAGES + 1), (1, 2, 3, 4), (0, 2))
GRID = (*_SHORT, *(cell for cell in _ALL if cell not in _SHORT))
SECONDS = 120  # of an evaluation; a rank that waits for ever is a fault


def in_ranks(trial: int, folder: Path) -> Mapping[str, JSON]:
    """R5, S02: a number of images, of processes and of readers; predictions and numbers are those of one process."""
    images, size, workers = GRID[trial]
    data = _first_images(images, folder)
    began = time.monotonic()
    found = _evaluated(data, size, workers, folder)
    seconds = time.monotonic() - began
    predictions = json.loads(found["predictions"])
    assert len({entry["image_id"] for entry in predictions}) == images
    assert found == _alone(images), f"{images} images differ on {size} processes with {workers} readers each"
    return {"images": images, "processes": size, "seconds": round(seconds, 2), "detections": len(predictions)}


def shuffled(trial: int, folder: Path) -> Mapping[str, JSON]:
    """R6: the order of images, annotations and categories in the file changes nothing."""
    content = _annotations()
    draw = random.Random(trial)
    for key in ("images", "annotations", "categories"):
        draw.shuffle(content[key])
    found = _evaluated(_write(content, folder), 1, 0, folder)
    assert found == _alone(IMAGES), "another order in the file gives other results"
    return {"first_image": content["images"][0]["id"]}


def with_long_ids(trial: int, folder: Path) -> Mapping[str, JSON]:
    """R5, R6: ids of 63 bits, some of them neighbours, move no number; predictions bear the ids of the file."""
    content = _annotations()
    draw = random.Random(trial)
    images = dict(zip(sorted(row["id"] for row in content["images"]), _long_ids(draw, IMAGES), strict=True))
    objects = _long_ids(draw, len(content["annotations"]))
    draw.shuffle(objects)
    for row in content["images"]:
        row["id"] = images[row["id"]]
    for row, own in zip(content["annotations"], objects, strict=True):
        row.update(id=own, image_id=images[row["image_id"]])
    size = 1 + trial % 2
    found = _evaluated(_write(content, folder), size, 0, folder)
    expected = _alone(IMAGES)
    assert found["metrics"] == expected["metrics"], "other ids give other numbers"
    named = [{**row, "image_id": images[row["image_id"]]} for row in json.loads(expected["predictions"])]
    assert json.loads(found["predictions"]) == named, "predictions lack the ids of the file"
    return {"processes": size, "detections": len(named)}


def _long_ids(draw: random.Random, count: int) -> list[int]:
    """Return ids in ascending order, which are equal as float64 in groups of three."""
    groups = [draw.randint(-(2**63) + 1, 2**63 - 4) for _ in range(count)]
    ids = sorted({start + offset for start in (*groups, 2**63 - 3) for offset in range(3)})
    first = draw.choice((0, len(ids) - count))  # the lower ones, or the higher ones
    return ids[first : first + count]


def _evaluated(data: Path, size: int, workers: int, folder: Path) -> dict[str, str]:
    """Return predictions and numbers as text, from ``size`` forks of this process, which import nothing again."""
    port = free_port()

    def evaluate(rank: int) -> None:
        numbers = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in numbers.items()}})
        metrics = evaluate_parts(
            _run(),
            say=lambda text: None,
            data=data,
            predictions=folder / "predictions.json",
            batch_size=BATCH,
            workers=workers,
            device="cpu",
        )[PRIMARY]
        (folder / f"metrics-{rank}.json").write_text(json.dumps(metrics.to_json()), encoding="utf-8")

    _run()  # before forking, so that it is made once
    children = [runs.in_child(lambda rank=rank: evaluate(rank)) for rank in range(size)]  # type: ignore[misc]
    codes = _wait(children)
    assert codes == [0] * size, f"ranks ended with {codes}"
    metrics = {(folder / f"metrics-{rank}.json").read_text(encoding="utf-8") for rank in range(size)}
    assert len(metrics) == 1, "ranks tell different numbers"
    return {"predictions": (folder / "predictions.json").read_text(encoding="utf-8"), "metrics": metrics.pop()}


def _wait(children: list[int]) -> list[int]:
    """Return how some children ended; once one has failed, or time is up, the others are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


@cache
def _alone(images: int) -> dict[str, str]:
    """Return what one process gives that reads its images itself."""
    folder = shared_folder(f"alone-{images}")
    return _evaluated(_first_images(images, folder), 1, 0, folder)


@cache
def _images() -> Path:
    """Return a generated COCO folder; its images have different shapes, so that those of a batch are padded."""
    spec = replace(SHAPES, name="shapes-tiny", size=112, max_objects=8, min_scale=0.08)
    return generate(spec, shared_folder("data") / "shapes-tiny", train_images=8, val_images=IMAGES)


@cache
def _run() -> Path:
    """Return a finished run that pads what it evaluates."""
    overrides = ("data.evaluation.square=false", "train.epochs=8", "train.max_steps=24", "evaluation.every=8")
    return small_runs.train(_images(), shared_folder("run") / "run", *overrides).directory


def _annotations() -> dict[str, Any]:
    path = _images() / "annotations" / "instances_val.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _first_images(count: int, folder: Path) -> Path:
    """Write the data set of the first images and return its file."""
    content = _annotations()
    chosen = sorted(image["id"] for image in content["images"])[:count]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    return _write(content, folder)


def _write(content: dict[str, Any], folder: Path) -> Path:
    return small_runs.write_data(content, folder / "annotations.json", _images() / "val")


PARTS = (
    Part(
        "eval-grid", len(GRID), len(_SHORT), in_ranks, "1 to 17 images on 1 to 4 processes, 0 or 2 readers: one result"
    ),
    Part("eval-shuffled", 20, 2, shuffled, "images, annotations and categories in another order: the same result"),
    Part("eval-ids", 20, 2, with_long_ids, "ids of 63 bits on 1 and 2 processes: the same numbers, the file's ids"),
)
