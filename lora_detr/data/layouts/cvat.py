"""COCO exports of CVAT, and COCO files whose images are in ``images/``."""

from __future__ import annotations

import os
from pathlib import Path

from lora_detr.data.coco.source import DataPaths, JsonSource, ReadAs
from lora_detr.data.layouts.layout import VALIDATION, Layout, not_found

_PREFIX, _SUFFIX = "instances_", ".json"
_ONLY = "default"
"""Name of the subset of tasks that have none."""


def recognises(data: Path) -> bool:
    """Return whether there is a training subset with images below ``images/``, and none where COCO has it."""
    train = _subset(data, "train", _ONLY)
    return train is not None and not (data / train).is_dir()


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the subsets that are the splits.

    Raises:
        DataError: there is no training subset.
    """
    train = _subset(data, "train", _ONLY)
    if train is None:
        raise not_found(data, CVAT.expects)
    val = _subset(data, *VALIDATION)
    missing = "" if val else "annotations/instances_val.json"
    return DataPaths(_source(data, train), _source(data, val) if val else None, missing)


def _subset(data: Path, *names: str) -> str | None:
    """Return the subset of one of some names, in whatever case and with whatever year, as it is written."""
    try:
        files = sorted(os.listdir(data / "annotations"))
        if not (data / "images").is_dir():
            return None
    except OSError:
        return None
    subsets = [file[len(_PREFIX) : -len(_SUFFIX)] for file in files if file.startswith(_PREFIX)]
    subsets = [each for each in subsets if (data / "annotations" / f"{_PREFIX}{each}{_SUFFIX}").is_file()]
    return next((each for name in names for each in subsets if each.lower().rstrip("0123456789") == name), None)


def _source(data: Path, subset: str) -> JsonSource:
    folder = data / "images" / subset
    annotations = data / "annotations" / f"{_PREFIX}{subset}{_SUFFIX}"
    return JsonSource(annotations, folder if folder.is_dir() else folder.parent, reads_sizes=True)


CVAT = Layout(
    "cvat",
    "annotations/instances_train.json (or _default) and images/train/ (or images/)",
    recognises,
    splits,
)
