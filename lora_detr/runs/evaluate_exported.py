"""Evaluate an exported file on the validation split of a data set, where no detector can be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lora_detr.checkpoints.exported.session import ExportedDetector
from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.source import AUTO, ReadAs
from lora_detr.data.layouts.registry import format_named
from lora_detr.errors import counted
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoMetrics
from lora_detr.evaluation.detect import detect_all, left_out_lines
from lora_detr.evaluation.operating_point import measure
from lora_detr.processes.world import World
from lora_detr.runs.validation import WORKERS, check_outputs, val_split, write_outputs


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
    confusion: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> CocoMetrics:
    """Evaluate an exported file; arguments as for ``evaluate_parts``, of whose others it has none.

    Of a file whose graph selects the best detections, suppression thins these out and fills no place again.

    Raises:
        LoraDetrError: whatever the user can cause.
    """
    check_outputs(predictions, confusion, nms_iou)
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
    if world.is_main:
        write_outputs(evaluator, metrics, contract, predictions, confusion)
    world.close()
    return metrics
