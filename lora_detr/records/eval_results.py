"""The ``eval`` folder of a run: numbers, table of classes and predictions of one checkpoint, always of the same one."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from lora_detr.atomic_files import prepare_directory, write_file
from lora_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics


def write_results(folder: Path, metrics: CocoMetrics, evaluator: CocoEvaluator, checkpoint: str) -> None:
    """Write ``metrics.json``, ``per_class.csv`` and ``predictions.json``.

    Args:
        folder: made if it is absent.
        metrics: of the evaluation.
        evaluator: holds the detections.
        checkpoint: name of what was evaluated.

    Raises:
        OutputError: a file cannot be written.
    """
    prepare_directory(folder)
    content = {"checkpoint": checkpoint, **metrics.to_json()}
    write_file(folder / "metrics.json", (json.dumps(content, indent=1) + "\n").encode())
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("category_id", "name", "objects", "AP", "AP50"))
    writer.writerows((row.category_id, row.name, row.objects, row.AP, row.AP50) for row in metrics.per_class)
    write_file(folder / "per_class.csv", table.getvalue().encode())
    evaluator.write_predictions(folder / "predictions.json")
