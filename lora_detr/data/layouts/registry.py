"""All layouts, and which of them a path has."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from lora_detr.data.coco.layout import coco_splits
from lora_detr.data.coco.source import AUTO, DataPaths, ReadAs
from lora_detr.data.layouts.coco import COCO
from lora_detr.data.layouts.cvat import CVAT
from lora_detr.data.layouts.label_studio import LABEL_STUDIO
from lora_detr.data.layouts.roboflow import ROBOFLOW
from lora_detr.data.layouts.voc import VOC
from lora_detr.data.layouts.yolo import YOLO
from lora_detr.errors import ConfigError, nearest

LAYOUTS = {layout.name: layout for layout in (COCO, ROBOFLOW, YOLO, VOC, CVAT, LABEL_STUDIO)}
"""Every layout by name."""

logger = logging.getLogger(__name__)


def _known(name: str) -> str:
    if name not in (AUTO, *LAYOUTS):
        raise ValueError(f"must be one of {', '.join((AUTO, *LAYOUTS))}{nearest(name, LAYOUTS)}")
    return name


Format = Annotated[str, AfterValidator(_known)]
"""A setting that holds the name of a layout, or ``auto``."""


def format_named(text: str) -> str:
    """Return the value of ``--data-format``.

    Raises:
        ConfigError: there is no such layout.
    """
    try:
        return _known(text)
    except ValueError as error:
        raise ConfigError(f"--data-format {text}: {error}", "leave it out to have it recognised") from None


def find_splits(data: Path, how: ReadAs = ReadAs()) -> DataPaths:  # noqa: B008 (frozen)
    """Find the training and validation split of a data set, whose layout is recognised unless it is given.

    Args:
        data: folder or file.
        how: what it is, and how it is read.

    Raises:
        ConfigError: ``data`` does not exist, has several layouts, or a YAML file in it is malformed.
        DataError: the training split, or a path that a YAML file names, is not there.
    """
    is_there = data.is_dir() or data.is_file()
    if how.format == AUTO:
        found = [layout for layout in LAYOUTS.values() if is_there and layout.recognises(data)]
    else:
        found = [LAYOUTS[how.format]]
    if len(found) > 1:
        matches = " and ".join(f"{layout.name} ({layout.expects})" for layout in found)
        choices = " or ".join(f"--data-format {layout.name}" for layout in found)
        raise ConfigError(f"{data}: can be read as {matches}", f"choose with {choices}")
    if not is_there or not found or found == [COCO]:
        return coco_splits(data)
    logger.info("%s: read as %s (%s)", data, found[0].name, found[0].expects)
    return found[0].splits(data, how)
