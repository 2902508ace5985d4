"""COCO exports of Label Studio: one file, all images in one folder, no validation split."""

from __future__ import annotations

from pathlib import Path

from lora_detr.data.coco.elsewhere import first_image_folder
from lora_detr.data.coco.source import DataPaths, JsonSource, ReadAs
from lora_detr.data.layouts.layout import Layout, not_found

FILE = "result.json"


def recognises(data: Path) -> bool:
    """Return whether there is such a file and a folder of images."""
    return (data / FILE).is_file() and (data / "images").is_dir()


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the only split; its file names begin with ``images/`` or not, depending on the version of the exporter.

    Raises:
        DataError: there is none.
    """
    if not recognises(data):
        raise not_found(data, LABEL_STUDIO.expects)
    images = first_image_folder(data / FILE, [data, data / "images"]) or data
    return DataPaths(JsonSource(data / FILE, images, reads_sizes=True), None, "a validation split in this format")


LABEL_STUDIO = Layout("label-studio", f"{FILE} and images/", recognises, splits)
