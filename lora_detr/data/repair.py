"""What can be put right in annotation files without a guess, written as new files beside the old ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_detr.atomic_files import reporting
from lora_detr.data.coco.checks import INT64_MAX, Row
from lora_detr.data.coco.files import ImageFolder
from lora_detr.data.coco.plausibility import box_doubt
from lora_detr.data.coco.source import DataPaths, JsonSource, Source
from lora_detr.data.images import image_size, many_files
from lora_detr.data.progress import following
from lora_detr.data.quality.duplicates import repeated_boxes
from lora_detr.data.quality.finding import Finding
from lora_detr.errors import ConfigError, DataError, counted
from lora_detr.regular_files import read_regular

YAML = "data.yaml"

_MAX_BYTES = 20_000_000_000
_BOX = ("box", "boxes")


@dataclass(frozen=True)
class Repaired:
    """What was written.

    Attributes:
        data: YAML file of paths, which ``--data`` takes.
        findings: what was repaired, with the code of the finding that it removes.
    """

    data: Path
    findings: tuple[Finding, ...]


def refuse_existing(output: Path) -> None:
    """Refuse to write into a folder that holds something, or in place of a file.

    Raises:
        ConfigError: C06.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is not empty; nothing was touched", "give another folder", code="C06")


def repair(paths: DataPaths, output: Path, *, allow_outside: bool = False) -> Repaired:
    """Write repaired annotation files of all splits, and a YAML file that joins them with the images where they are.

    Boxes are clipped to the image, and dropped if nothing is left of them or if they repeat another one; ids that two
    annotations share are replaced; sizes of images are read from the files, unless those seem to be turned or resized,
    since their boxes would then have to be changed too. All else stays as it is.

    Args:
        paths: of the data set.
        output: folder to make, which appears at once and complete.
        allow_outside: images may lie outside their folder.

    Raises:
        ConfigError: C06, ``output`` holds something.
        DataError: an annotation file cannot be read.
        OutputError: the folder cannot be written.
    """
    refuse_existing(output)
    splits = {"train": paths.train} | ({"val": paths.val} if paths.val is not None else {})
    findings: list[Finding] = []
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        reporting(output),
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch,
    ):
        made = Path(scratch) / output.name
        made.mkdir()
        lines = []
        for name, source in splits.items():
            file = f"instances_{name}.json"
            content = _SplitRepair(source, allow_outside).content(findings)
            (made / file).write_text(json.dumps(content), encoding="utf-8")
            images = json.dumps(os.path.abspath(source.images))
            lines.append(f"{name}_annotations: {file}\n{name}_images: {images}\n")
        (made / YAML).write_text("".join(lines), encoding="utf-8")
        made.rename(output)
    return Repaired(output / YAML, tuple(findings))


class _SplitRepair:
    """One annotation file while it is repaired."""

    def __init__(self, source: Source, allow_outside: bool) -> None:
        self.source = source
        self.root = _content(source, allow_outside)
        self.images: list[Row] = _rows(self.root, "images")
        self.annotations: list[Row] = _rows(self.root, "annotations")
        self.folder = ImageFolder(source.images, allow_outside=allow_outside, must_exist=True)
        self.disputed: set[int] = set()  # places of images that are of another size than the file states
        self.found: list[Finding] = []

    def content(self, findings: list[Finding]) -> Row:
        """Return what the repaired file holds, and add what was repaired to the findings."""
        own: dict[int | float | None, list[Row]] = {}
        for row in self.annotations:
            own.setdefault(_number_of(row, "image_id"), []).append(row)
        self._read_sizes(own)
        self._renumber()
        self._repair_boxes()
        findings += self.found
        return self.root

    def _add(self, code: str, count: int, what: str, places: Sequence[str]) -> None:
        if count:
            self.found.append(Finding(code, "info", count, f"{self.source.name}: {what}", tuple(places)))

    def _read_sizes(self, own: dict[int | float | None, list[Row]]) -> None:
        names = [row["file_name"] if isinstance(row.get("file_name"), str) else "" for row in self.images]
        unusable = {fault.index for fault in self.folder.check(names)}
        places = []
        with many_files():
            for i in following(range(len(names)), len(names), f"{self.source.name}: read sizes of"):
                row = self.images[i]
                if i in unusable or not names[i]:
                    continue
                try:
                    size = image_size(self.folder.root / names[i])
                except DataError:
                    continue  # the check of the images reports it
                stated = (row.get("width"), row.get("height"))
                if size == stated:
                    continue
                if None in stated or _fits_file(stated, size, own.get(_number_of(row, "id"), [])):
                    row["width"], row["height"] = size
                    if not (None in stated and self.source.reads_sizes):
                        places.append(f"{names[i]} (image id {row.get('id')}): {stated} is {size}")
                else:
                    self.disputed.add(i)
        what = f"width and height of {counted(len(places), 'image')} corrected from the file"
        self._add("D23", len(places), what, places)

    def _renumber(self) -> None:
        seen: set[int] = set()
        again = []
        for i, row in enumerate(self.annotations):
            number = row.get("id")
            if type(number) is not int or abs(number) > INT64_MAX or number in seen:
                again.append(i)
            else:
                seen.add(number)
        places = []
        for number, i in enumerate(again, start=max((*seen, 0)) + 1):
            places.append(f"annotations[{i}]: id {self.annotations[i].get('id')} is {number}")
            self.annotations[i]["id"] = number
        self._add("D04", len(again), f"{counted(len(again), 'annotation')} given an id of its own", places)

    def _repair_boxes(self) -> None:
        sizes = {
            row["id"]: (row["width"], row["height"])
            for i, row in enumerate(self.images)
            if i not in self.disputed
            and type(row.get("id")) is int
            and abs(row["id"]) <= INT64_MAX
            and _is_size(row.get("width"))
            and _is_size(row.get("height"))
        }
        usable = [
            i
            for i, row in enumerate(self.annotations)
            if _number_of(row, "image_id") in sizes and _is_box(row.get("bbox"))
        ]
        rows = [self.annotations[i] for i in usable]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        limits = np.array([sizes[row["image_id"]] for row in rows], dtype=np.float64).reshape(-1, 2)
        if self.source.relative:
            boxes *= np.tile(limits, 2)
            areas = limits.prod(axis=1)
            for row, box, scale in zip(rows, boxes.tolist(), areas.tolist(), strict=True):
                row["bbox"], row["area"] = box, row["area"] * scale
        product = boxes[:, 2:].prod(axis=1)
        areas = np.array([_area(row, default) for row, default in zip(rows, product.tolist(), strict=True)])
        if box_doubt(boxes, limits, areas):
            return  # of another convention: clipping would destroy them
        corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
        clipped = np.clip(corners, 0.0, np.tile(limits, 2))
        moved = (np.abs(corners - clipped) > 1e-6).any(axis=1)
        low, high = clipped[:, :2].astype(np.float32), clipped[:, 2:].astype(np.float32)
        empty = ~(high > low).all(axis=1)
        whole = np.array([not row.get("iscrowd") for row in rows], dtype=bool)
        compared = np.flatnonzero(~empty & whole)
        repeated = compared[self._repeated([rows[i] for i in compared.tolist()], clipped[compared])]
        dropped = np.zeros(len(rows), dtype=bool)
        dropped[repeated] = True
        clips = moved & ~empty & ~dropped
        for i in np.flatnonzero(clips).tolist():
            x1, y1, x2, y2 = clipped[i].tolist()
            rows[i]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if np.isclose(areas[i], product[i]):  # else it is that of an outline
                rows[i]["area"] = (x2 - x1) * (y2 - y1)
        for code, chosen, what in (
            ("Q12", clips, "clipped to the image"),
            ("D07", empty, "removed: no area in the image"),
            ("Q04", dropped, "removed: the same as another of its class and image"),
        ):
            places = [self._place(usable[i], boxes[i]) for i in np.flatnonzero(chosen).tolist()]
            self._add(code, len(places), f"{counted(len(places), *_BOX)} {what}", places)
        removed = {usable[i] for i in np.flatnonzero(empty | dropped).tolist()}
        self.root["annotations"] = [row for i, row in enumerate(self.root["annotations"]) if i not in removed]

    def _repeated(self, rows: Sequence[Row], corners: NDArray[np.float64]) -> NDArray[np.int64]:
        images = np.array([row["image_id"] for row in rows], dtype=np.int64)
        kinds = {kind: i for i, kind in enumerate({str(row.get("category_id")) for row in rows})}
        classes = np.array([kinds[str(row.get("category_id"))] for row in rows], dtype=np.int64)
        # The first by id stays, as training would see them.
        order = np.lexsort((np.array([row["id"] for row in rows], dtype=np.int64), images))
        found = repeated_boxes(images[order], classes[order], corners[order].astype(np.float32).astype(np.float64))
        return np.asarray(order[found])

    def _place(self, index: int, box: NDArray[np.float64]) -> str:
        row = self.annotations[index]
        where = self.source.place("annotations", index)
        where = where or f"annotations[{index}] (id={row['id']}, image_id={row['image_id']})"
        return f"{where}: bbox {box.tolist()}"


def _content(source: Source, allow_outside: bool) -> Row:
    """Return all that an annotation file holds, or what it would hold if the data set were one."""
    rows: list[Any] = []
    if type(source) is JsonSource:
        read: Row = {}
    else:
        read = source.read(rows.extend, lambda problem: None, allow_outside=allow_outside)
    if isinstance(source, JsonSource):
        try:
            root = json.loads(read_regular(source.path, _MAX_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{source.path}: cannot be read: {error}", "get the file again", code="D01") from error
        if not isinstance(root, dict):
            raise DataError(f"{source.path}: the root must be an object", "get the file again", code="D02")
        return root | ({"categories": read["categories"]} if read else {})
    # A box that could not be read has a text in its place, so that reading the new file reports it.
    for row in rows:
        row["bbox"] = row["bbox"] if isinstance(row["bbox"], list) else row["bbox"].what
    return {**read, "annotations": rows}


def _rows(root: Row, section: str) -> list[Row]:
    """Return the rows of a section at their places; what is no object is an empty row, and stays in the file."""
    rows = root.get(section)
    return [row if isinstance(row, dict) else {} for row in rows] if isinstance(rows, list) else []


def _number_of(row: Row, key: str) -> int | float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_box(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 4 or any(type(entry) not in (int, float) for entry in value):
        return False
    return all(abs(entry) < 1e15 for entry in value) and min(value[2:]) >= 0


def _area(row: Row, default: float) -> float:
    value = _number_of(row, "area")
    return float(value) if value is not None and 0 <= value < 1e30 else default


def _fits_file(stated: tuple[Any, Any], size: tuple[int, int], rows: Sequence[Row]) -> bool:
    """Return whether the boxes of an image are of its file, and only its stated size is wrong.

    They are not if one reaches beyond the file. If the file seems to be turned, or resized in both directions alike,
    they may be of either, unless one reaches beyond the stated size.
    """
    if not (_is_size(stated[0]) and _is_size(stated[1])):
        return True
    ratios = (size[0] / stated[0], size[1] / stated[1])
    resized = abs(ratios[0] - ratios[1]) < 0.01 * max(ratios) and abs(ratios[0] - 1) > 0.01
    is_doubtful = resized or stated == size[::-1]
    boxes = [row["bbox"] for row in rows if _is_box(row.get("bbox"))]
    return _lie_within(boxes, size) and not (is_doubtful and _lie_within(boxes, stated))


def _lie_within(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> bool:
    return all(x + width <= size[0] + 1 and y + height <= size[1] + 1 for x, y, width, height in boxes)
