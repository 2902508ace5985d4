"""Measure the path of training images: images a second for some numbers of workers, and the time of each stage.

    python benchmarks/loading.py
    python benchmarks/loading.py --data data/coco --preset deformable --images 256 --workers 0 1 2 4 8

Each preset prepares the same images at its own size. All numbers of workers take turns, and go through the same epoch
in every round, first one that does not count: so workers have started, and files come from the memory of the system and
not from the disk. ``ratio`` is images a second as a multiple of those without workers. With ``--device cuda`` batches
are copied to the GPU too.

Stages are timed in one process on the same images, as they happen, image by image; their ratio is to ``all``. A file is
read for its own stage, and then again where it is decoded; that second time is subtracted. What is in no stage is
``rest``.

Padding is the share of pixels that belong to no image, with ``data.group_by_shape`` and without, in as many epochs as
there are rounds; ``ratio`` is that share.

Without ``--data`` images are drawn into a temporary folder, as large as those of COCO and as JPEG.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.report import Row, give, parse
from lora_detr.config.load import load_config
from lora_detr.data import dataset as dataset_module
from lora_detr.data import transforms
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import BatchLoader, collate
from lora_detr.data.synthetic.sets import SHAPES, generate, resolve_generated
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, read_splits, train_loader
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.metrics import RunningMean, padded_share, pixel_counts

JPEG_QUALITY = 95
READING, DECODING, COLLATING, REST, ALL = "read the file", "decode", "collate", "rest", "all"
STEPS = {"flip": "flip", "resize": "resize", "crop": "crop", "finish": "planes, relative boxes"}
"""Stages of the transform by the name of the function, in the order in which they are applied."""

STAGES = (READING, DECODING, *STEPS.values(), COLLATING, REST, ALL)


def synthetic_data(folder: Path, images: int, size: int, kind: str) -> Path:
    """Draw a COCO folder and return it.

    Args:
        folder: which is made.
        images: for training; one more is for validation.
        size: longer side in pixels.
        kind: ``jpeg``, as photos are, or ``png``, as the generated set is.
    """
    data = generate(replace(SHAPES, size=size), folder, train_images=images, val_images=1)
    if kind == "png":
        return data
    for path in data.glob("*/*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=JPEG_QUALITY)
    for path in data.glob("annotations/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["images"]:
            row["file_name"] = str(Path(row["file_name"]).with_suffix(".jpg"))
        path.write_text(json.dumps(content), encoding="utf-8")
    return data


def opened(data: Path, preset: str, images: int, batch: int | None) -> tuple[Splits, RunConfig]:
    """Read the first so many training images of a data set (or as many as there are) for a preset.

    Args:
        data: COCO folder or YAML file.
        preset: whose transforms and batch size are taken.
        images: at least one.
        batch: images of a batch, instead of the preset's.
    """
    overrides = ["data.num_classes=auto", *([f"train.batch_size={batch}"] if batch is not None else [])]
    config = load_config(RunConfig, preset=preset, overrides=overrides).config
    splits = read_splits(data, config.data)
    return replace(splits, train=splits.train.subset(splits.train.image_ids[:images])), config


def epoch(loader: BatchLoader, device: str) -> int:
    """Go through the first epoch, leave each batch on the device, and return the number of images."""
    loader.set_epoch(0)
    return sum(len(batch.to(torch.device(device)).targets) for batch in loader)


def worker_rows(
    preset: str, splits: Splits, config: RunConfig, workers: Sequence[int], rounds: int, device: str
) -> list[Row]:
    """Return a row for each number of workers, and first for none."""
    counts = [0, *(count for count in workers if count)]
    world = World.from_environment(device)
    with ExitStack() as stack:
        loaders = []
        for count in counts:
            changed = config.model_copy(update={"data": config.data.model_copy(update={"workers": count})})
            loaders.append(stack.enter_context(closing(train_loader(splits, changed, world))))
        images = epoch(loaders[0], device)
        timings = interleaved([partial(epoch, loader, device) for loader in loaders], rounds, device=device)
    rows = []
    for count, timing in zip(counts, timings, strict=True):
        speed = {"images_a_second": images / timing.seconds, "ratio": 1 / timing.ratio}
        spread = {"lowest": 1 / timing.highest, "highest": 1 / timing.lowest}
        rows.append(_row("workers", preset, workers=count, **speed, **spread))
    return rows


def padding_rows(preset: str, splits: Splits, config: RunConfig, epochs: int) -> list[Row]:
    """Return a row for batches in any order and one for those grouped by shape: the median share of padding."""
    rows = []
    for grouped in (False, True):
        data = config.data.model_copy(update={"workers": 0, "group_by_shape": grouped})
        loader = train_loader(splits, config.model_copy(update={"data": data}), World.from_environment("cpu"))
        shares = []
        for number in range(epochs):
            loader.set_epoch(number)
            counts = RunningMean()
            for batch in loader:
                counts.add(pixel_counts([batch]))
            shares.append(padded_share(counts.means()))
        spread = {"ratio": statistics.median(shares), "lowest": min(shares), "highest": max(shares)}
        rows.append(_row("padding", preset, grouped=grouped, **spread))
    return rows


def stage_rows(preset: str, splits: Splits, config: RunConfig, rounds: int) -> list[Row]:
    """Return a row for each stage: milliseconds an image, and its share of all of them; medians of the rounds."""
    turns = [stage_seconds(splits, config) for _ in range(1 + rounds)][1:]  # the first one warms up
    rows = []
    for stage in STAGES:
        seconds = [turn[stage] / len(splits.train) for turn in turns]
        shares = [turn[stage] / turn[ALL] for turn in turns]
        spread = {"ratio": statistics.median(shares), "lowest": min(shares), "highest": max(shares)}
        rows.append(_row("stage", preset, stage=stage, milliseconds=1e3 * statistics.median(seconds), **spread))
    return rows


def stage_seconds(splits: Splits, config: RunConfig) -> dict[str, float]:
    """Prepare each image once in this process and return the seconds of each of ``STAGES``, all images together."""
    dataset = CocoDataset(splits.train, config.data.train.build(), config.train.seed)
    size, divisor = config.train.batch_size, config.data.size_divisor
    seconds: dict[str, float] = defaultdict(float, dict.fromkeys(STAGES, 0.0))
    with _timed(seconds):
        for first in range(0, len(dataset), size):
            indices = range(first, min(first + size, len(dataset)))
            for i in indices:
                start = time.perf_counter()
                splits.train.records[i].path.read_bytes()
                seconds[READING] += time.perf_counter() - start
            start = time.perf_counter()
            samples = [dataset.sample(i, 0) for i in indices]
            before = time.perf_counter()
            collate(samples, divisor)
            end = time.perf_counter()
            seconds[COLLATING] += end - before
            seconds[ALL] += end - start
    seconds[DECODING] = max(0.0, seconds[DECODING] - seconds[READING])
    seconds[REST] = seconds[ALL] - sum(seconds[stage] for stage in STAGES if stage not in (REST, ALL))
    return dict(seconds)


@contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add up what the functions of the path take, none of which calls another of them."""

    def watched(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            seconds[stage] += time.perf_counter() - start
            return result

        return call

    with ExitStack() as stack:
        decode = watched(dataset_module.read_image, DECODING)
        stack.enter_context(patch.object(dataset_module, "read_image", decode))
        for name, stage in STEPS.items():
            stack.enter_context(patch.object(transforms, name, watched(getattr(transforms, name), stage)))
        yield


def _row(
    kind: str,
    preset: str,
    *,
    ratio: float,
    lowest: float,
    highest: float,
    workers: int | None = None,
    images_a_second: float | None = None,
    stage: str | None = None,
    milliseconds: float | None = None,
    grouped: bool | None = None,
) -> Row:
    row = {"kind": kind, "preset": preset, "workers": workers, "images_a_second": images_a_second, "stage": stage}
    return {
        **row,
        "milliseconds": milliseconds,
        "grouped": grouped,
        "ratio": ratio,
        "lowest": lowest,
        "highest": highest,
    }


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO folder or YAML; default: images that are drawn first")
    parser.add_argument("--preset", nargs="+", default=["deformable-tiny", "deformable"], help="whose sizes are taken")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=64, help="in a round, as far as there are so many")
    parser.add_argument("--batch", type=int, help="images of a batch; default: the preset's")
    parser.add_argument("--size", type=int, default=640, help="longer side of images that are drawn")
    parser.add_argument("--kind", choices=("jpeg", "png"), default="jpeg", help="of images that are drawn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where batches are brought")
    given = parse(parser)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if given.data is None:
            data = synthetic_data(Path(folder) / "made-up", given.images, given.size, given.kind)
        else:
            data = resolve_generated(given.data)
        for preset in given.preset:
            splits, config = opened(data, preset, given.images, given.batch)
            rows += worker_rows(preset, splits, config, given.workers, given.rounds, given.device)
            rows += stage_rows(preset, splits, config, given.rounds)
            rows += padding_rows(preset, splits, config, given.rounds)
    give(rows, given)


if __name__ == "__main__":
    main()
