"""Evaluate an exported file on the validation split of a data set, where no detector can be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lora_detr.checkpoints.exported.session import ExportedDetector
from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.source import AUTO, ReadAs
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.layouts.registry import find_splits, format_named
from lora_detr.errors import ConfigError, DataError, counted
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoMetrics
from lora_detr.evaluation.detect import detect_all, left_out_lines
from lora_detr.evaluation.operating_point import measure
from lora_detr.processes.world import World

# One is enough to keep a small detector busy, and more would take cores from it on a CPU.
WORKERS = 1


def evaluate_exported(
    model: Path,
    *,
    say: Callable[[str], None],
    data: Path | None = None,
    data_format: str | None = None,
    nms_iou: float | None = None,
    on_bad_data: Literal["error", "skip"] | None = None,
    allow_outside: bool = False,
    predictions: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> CocoMetrics:
    """Evaluate an exported file; arguments as for ``evaluate_parts``, of whose others it has none.

    Of a file whose graph selects the best detections, suppression thins these out and fills no place again.

    Raises:
        LoraDetrError: whatever the user can cause.
    """
    if predictions is not None:
        check_place(predictions)
    how = ReadAs(format_named(data_format or AUTO))
    world = World.from_environment(device)
    exported = ExportedDetector(model, world.device)
    contract = exported.contract
    policy = Policy("none", False, on_bad_data or "error", allow_outside, contract.max_pixels)
    split = val_split(data, contract.categories, policy, how, "an exported file")
    say(f"exported file: {counted(len(split), 'image')} of {split.report.file}")
    evaluators = detect_all(
        exported,
        split,
        contract,
        world,
        batch_size=contract.batch or batch_size or 1,
        workers=WORKERS if workers is None else workers,
        nms_ious=(None, SUPPRESSION_IOU) if nms_iou is None else (nms_iou,),
        on_bad_data=policy.on_bad_data,
    )
    evaluator = evaluators[nms_iou]
    for line in left_out_lines(evaluator) if world.is_main else ():
        say(line)
    metrics = measure(evaluators, contract) if nms_iou is None else evaluator.compute()
    if predictions is not None and world.is_main:
        evaluator.write_predictions(predictions)
    world.close()
    return metrics


def check_place(predictions: Path) -> None:
    """Refuse a place that cannot be written before the evaluation, not after it."""
    if predictions.is_dir():
        raise ConfigError(f"--predictions {predictions}: is a folder", "give the name of a file")
    if not predictions.parent.is_dir():
        raise ConfigError(f"--predictions {predictions}: no such folder {predictions.parent}", "make it first")


def val_split(data: Path | None, categories: CategoryMap, policy: Policy, how: ReadAs, what: str) -> CocoSplit:
    """Return the validation split of a data set, labelled as a model.

    Args:
        data: of any layout.
        categories: of the model.
        policy: how strictly to look at it.
        how: its layout.
        what: the model is, for the message where ``data`` is missing.

    Raises:
        ConfigError: ``data`` is missing.
        DataError: it has no such split, or cannot be used.
    """
    if data is None:
        raise ConfigError(f"{what} records no data path", "give --data DIR")
    paths = find_splits(data, how)
    if paths.val is None:
        raise DataError(
            f"{data}: no validation split: {paths.missing} not found",
            "add it, give val_annotations and val_images in a YAML file, or make a split with loradetr data convert",
        )
    return policy.load(paths.val).with_categories(categories)
