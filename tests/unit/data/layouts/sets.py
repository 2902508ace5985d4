"""Public data sets in miniature, in the layouts in which they are offered: structure and quirks, not content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_detr.data.coco.audit import Policy
from lora_detr.data.coco.source import DataPaths, ReadAs
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.layouts.registry import find_splits

ORIENTATION = 0x0112
SIDES = ("xmin", "ymin", "xmax", "ymax")

Objects = list[tuple[int, str, list[float]]]


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def image(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    """Write noise that no other image has; with an orientation, ``width`` and ``height`` are those before turning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list("/".join(path.parts[-3:]).encode()))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, exif=exif)
    return path


def xml(path: Path, objects: Iterable[str], *, filename: str = "", size: str = "40x30", more: str = "") -> Path:
    """Write an annotation of Pascal VOC; ``objects`` are ``name xmin ymin xmax ymax [difficult]``."""
    width, _, height = size.partition("x")
    shown = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>" if size else ""
    rows = ""
    for line in objects:
        name, *corners = line.split()
        sides = "".join(f"<{key}>{value}</{key}>" for key, value in zip(SIDES, corners, strict=False))
        difficult = f"<difficult>{corners[4]}</difficult>" if len(corners) > 4 else ""
        rows += f"<object>\n<name>{name}</name><pose>Left</pose>{difficult}<bndbox>{sides}</bndbox>{more}</object>\n"
    filename = filename or f"{path.stem}.jpg"
    return text(path, f"<annotation><folder>x</folder><filename>{filename}</filename>{shown}\n{rows}</annotation>\n")


def coco(path: Path, images: list[dict[str, Any]], boxes: list[dict[str, Any]], names: dict[int, str]) -> Path:
    categories = [{"id": i, "name": name, "supercategory": "none"} for i, name in names.items()]
    annotations = [{"id": i, "area": 1.0, "iscrowd": 0, **box} for i, box in enumerate(boxes)]
    return text(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def roboflow_coco(root: Path) -> Path:
    """Hard hats of Roboflow: category 0 is named like the project and has no object; ids begin with 0."""
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        rows = [
            {"id": i, "license": 1, "file_name": f"{split}{i}_jpg.rf.0a1b.jpg", "height": 30, "width": 40}
            for i in range(count)
        ]
        boxes = [{"image_id": i, "category_id": 1 + i, "bbox": [2, 3, 10.5, 12], "area": 126} for i in range(count)]
        coco(root / split / "_annotations.coco.json", rows, boxes, {0: "hard-hats", 1: "head", 2: "helmet"})
        for row in rows:
            image(root / split / row["file_name"])
    return root


def roboflow_yolo(root: Path) -> Path:
    """The same set as YOLO: paths begin with ``../`` although they lie beside the file, and one label file is empty."""
    for split in ("train", "valid", "test"):
        for i in range(2):
            image(root / split / "images" / f"{split}{i}.jpg")
        text(root / split / "labels" / f"{split}0.txt", "1 0.5 0.5 0.25 0.2\n0 0.25 0.5 0.5 1\n")
        text(root / split / "labels" / f"{split}1.txt", "")
    text(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['head', 'helmet']\n\n"
        "roboflow:\n  workspace: joseph\n  version: 3\n  license: CC BY 4.0\n  url: https://universe.roboflow.com/x\n",
    )
    return root


def coco8(root: Path) -> Path:
    """coco8 of Ultralytics: ``path`` is a folder of theirs, names are numbered, one image has no label file."""
    for split in ("train", "val"):
        for i in range(3):
            image(root / "images" / split / f"00000000{i}.jpg")
        text(root / "labels" / split / "000000000.txt", "45 0.5 0.5 0.5 0.5\n\n22 0.9 0.9 0.2 0.2\n")
        text(root / "labels" / split / "000000001.txt", "0 0.1 0.1 0.3 0.1 0.3 0.5 0.2 0.4\n")
    names = "".join(f"  {i}: name{i}\n" for i in range(80))
    head = "# Ultralytics\npath: coco8 # dataset root dir\ntrain: images/train # 4 images\nval: images/val\ntest:\n"
    text(root / "coco8.yaml", f"{head}\nnames:\n{names}\ndownload: https://example.com/coco8.zip\n")
    return root / "coco8.yaml"


def cvat_yolo(root: Path) -> Path:
    """YOLO of CVAT: each split is a list of images."""
    for split, subset in (("train", "Train"), ("val", "Validation")):
        names = [f"images/{subset}/frame_{i}.png" for i in range(2)]
        for name in names:
            image(root / name)
        text(root / "labels" / subset / "frame_0.txt", "0 0.25 0.25 0.5 0.5\n")
        text(root / f"{split}.txt", "".join(f"{name}\n" for name in names))
    text(root / "data.yaml", "names:\n  0: car\n  1: person\npath: .\ntrain: train.txt\nval: val.txt\n")
    return root


def voc2007(root: Path) -> Path:
    """VOC2007: coordinates from 1, difficult objects, parts of persons, and lists of each class."""
    year = root / "VOCdevkit" / "VOC2007"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    xml(year / "Annotations" / "000005.xml", ["person 1 1 40 30 0", "chair 11 6 20 15 1"], more=part)
    xml(year / "Annotations" / "000007.xml", ["car 5 6 7 8 0"])
    xml(year / "Annotations" / "000009.xml", ["person 2 3 12 13 0"])
    for stem in ("000005", "000007", "000009", "000012"):
        image(year / "JPEGImages" / f"{stem}.jpg")
    lists = year / "ImageSets" / "Main"
    text(lists / "train.txt", "000005\n000007\n")
    text(lists / "val.txt", "000009\n")
    text(lists / "trainval.txt", "000005\n000007\n000009\n")
    text(lists / "car_train.txt", "000005 -1\n000007  1\n")
    return root


def roboflow_voc(root: Path) -> Path:
    """Pascal VOC of Roboflow: XML files beside their images, coordinates from 0."""
    for split, lines in (("train", ["dog 0 0 10 10", "cat 5 5 25 20"]), ("valid", ["cat 1 2 3 4"])):
        xml(root / split / f"{split}_jpg.rf.1.xml", lines)
        image(root / split / f"{split}_jpg.rf.1.jpg")
    return root


def pets(root: Path) -> Path:
    """Oxford-IIIT pets: ``filename`` of another image, most images without XML, and lists with columns."""
    xml(root / "annotations" / "xmls" / "Abyssinian_1.xml", ["cat 0 2 30 20"], filename="Bombay_3.jpg")
    xml(root / "annotations" / "xmls" / "beagle_1.xml", ["dog 10 2 20 22"], filename="beagle_1")
    for name in ("Abyssinian_1.jpg", "beagle_1.jpg", "Bombay_3.jpg"):
        image(root / "images" / name)
    text(root / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1\nbeagle_1 5 2 1\n")
    return root


def label_studio(root: Path) -> Path:
    """Label Studio: one file, no sizes, file names with the folder; the second image lies on its side by EXIF."""
    rows = [{"id": i, "file_name": f"images/{i}-a.jpg"} for i in range(2)]
    boxes = [{"image_id": i, "category_id": 0, "bbox": [1.5, 2, 20, 25], "area": 500} for i in range(2)]
    coco(root / "result.json", rows, boxes, {0: "apple", 1: "pear"})
    image(root / "images" / "0-a.jpg")
    image(root / "images" / "1-a.jpg", orientation=6)
    return root


def cvat_coco(root: Path) -> Path:
    """COCO of CVAT: images in a folder of the subset, below ``images/``."""
    for subset in ("Train", "Validation"):
        row = {"id": 1, "file_name": "frame_000000.png", "width": 40, "height": 30}
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
        coco(root / "annotations" / f"instances_{subset}.json", [row], [box], {1: "car"})
        image(root / "images" / subset / "frame_000000.png")
    return root


MADE = {
    "roboflow": roboflow_coco,
    "yolo of Roboflow": roboflow_yolo,
    "yolo of Ultralytics": coco8,
    "yolo of CVAT": cvat_yolo,
    "voc of 2007": voc2007,
    "voc of Roboflow": roboflow_voc,
    "voc of pets": pets,
    "label-studio": label_studio,
    "cvat": cvat_coco,
}
"""What makes each set in an empty folder, and returns what ``--data`` is given; the first word is the layout."""


def read(data: Path, policy: Policy | None = None, how: ReadAs | None = None) -> tuple[CocoSplit, CocoSplit | None]:
    """Return both splits of a data set."""
    paths: DataPaths = find_splits(data, how or ReadAs())
    policy = policy or Policy()
    return policy.load(paths.train), None if paths.val is None else policy.load(paths.val)


def objects(split: CocoSplit) -> Objects:
    """Return image id, category and box (rounded) of all annotations of a split, crowd regions included."""
    truth, names = split.ground_truth, split.categories.names_by_id
    columns = (truth.image_ids.tolist(), truth.category_ids.tolist(), truth.boxes_xywh_pixels.round(6).tolist())
    return [(image_id, names[category], box) for image_id, category, box in zip(*columns, strict=True)]
