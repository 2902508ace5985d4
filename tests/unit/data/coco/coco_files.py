"""Small COCO folders for the tests of reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_detr.data.coco.split import CocoSplit, load_coco


def content(images: int = 3, width: int = 40, height: int = 30) -> dict[str, Any]:
    """Return a faultless file: ``images`` images with ids 10, 11, ... and one object each."""
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height} for i in range(images)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": 10 + i,
                "category_id": 1 + i % 2,
                "bbox": [2, 3, 10, 12],
                "area": 120,
                "iscrowd": 0,
            }
            for i in range(images)
        ],
    }


def write(folder: Path, value: Any, name: str = "train.json") -> Path:
    """Write a value as JSON and return the path."""
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def write_images(folder: Path, value: dict[str, Any], seed: int = 0) -> None:
    """Write a noise PNG for every image of an annotation file."""
    random = np.random.default_rng(seed)
    for row in value["images"]:
        pixels = random.integers(0, 256, (row["height"], row["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / row["file_name"])


def load(folder: Path, value: Any, **options: Any) -> CocoSplit:
    """Write and load an annotation file; image files are not looked for unless asked."""
    return load_coco(write(folder, value), folder, **{"check_files": False, **options})


def rotate_names(value: dict[str, Any]) -> None:
    """Give each category the name of the next one, so that labels change their meaning."""
    names = [row["name"] for row in value["categories"]]
    for row, name in zip(value["categories"], names[1:] + names[:1], strict=True):
        row["name"] = name
