"""What every evaluation asks before it starts: where its images are, and whether what it finds can be written."""

from __future__ import annotations

from pathlib import Path

from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.source import ReadAs
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import ConfigError, DataError
from lora_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from lora_detr.evaluation.confusion import check_suffix, confusion_of, write_confusion
from lora_detr.recipe.preparation import Preparation

# One is enough to keep a small detector busy, and more would take cores from it on a CPU.
WORKERS = 1


def check_outputs(predictions: Path | None, confusion: Path | None, nms_iou: float | None) -> None:
    """Refuse files that cannot be written, or not with these options, before the evaluation and not after it.

    Raises:
        ConfigError: one of them.
    """
    for option, path in (("--predictions", predictions), ("--confusion", confusion)):
        if path is not None:
            check_place(option, path)
    if confusion is not None:
        check_suffix(confusion)
        if nms_iou is not None:
            raise ConfigError(
                "--confusion is about the operating point, which decides about suppression itself", "leave out --nms"
            )


def check_place(option: str, path: Path) -> None:
    """Refuse a place of a file that cannot be written before the evaluation, not after it.

    Raises:
        ConfigError: it is a folder, or in none.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder", "give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: no such folder {path.parent}", "make it first")


def write_outputs(
    evaluator: CocoEvaluator,
    metrics: CocoMetrics,
    config: Preparation,
    predictions: Path | None,
    confusion: Path | None,
) -> None:
    """Write the files that ``check_outputs`` has let pass.

    Args:
        evaluator: has the detections.
        metrics: of them; without an operating point there is no confusion matrix.
        config: of the detector.
        predictions: COCO results; None for none.
        confusion: confusion matrix and kinds of errors; None for none.

    Raises:
        OutputError: one cannot be written.
    """
    if predictions is not None:
        evaluator.write_predictions(predictions)
    if confusion is not None and metrics.usage is not None:
        point = metrics.usage.point
        write_confusion(confusion, confusion_of(evaluator, point, config.categories, config.suppression))


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
