"""COCO exports of Roboflow: an annotation file in the folder of each split."""

from __future__ import annotations

from pathlib import Path

from lora_detr.data.coco.source import DataPaths, JsonSource, ReadAs
from lora_detr.data.layouts.layout import VALIDATION, Layout, not_found, split_folder

FILE = "_annotations.coco.json"


def recognises(data: Path) -> bool:
    """Return whether the training split lies where Roboflow has it."""
    return (data / "train" / FILE).is_file()


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the splits.

    Raises:
        DataError: there is no training split.
    """
    if not recognises(data):
        raise not_found(data, ROBOFLOW.expects)
    val = split_folder(data, VALIDATION, FILE)
    return DataPaths(_source(data / "train"), _source(val) if val else None, "" if val else f"valid/{FILE}")


def _source(folder: Path) -> JsonSource:
    return JsonSource(folder / FILE, folder, f"{folder.name}/{FILE}", reads_sizes=True)


ROBOFLOW = Layout("roboflow", f"train/{FILE}", recognises, splits)
