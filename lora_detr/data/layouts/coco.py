"""A COCO folder, or a YAML file of four lines."""

from __future__ import annotations

from pathlib import Path

from lora_detr.data.coco.layout import coco_splits, is_coco
from lora_detr.data.coco.source import DataPaths, ReadAs
from lora_detr.data.layouts.layout import Layout


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the splits; errors as of ``coco_splits``."""
    return coco_splits(data)


COCO = Layout(
    "coco",
    "annotations/instances_train.json and train/, or a YAML file with train_annotations",
    is_coco,
    splits,
)
