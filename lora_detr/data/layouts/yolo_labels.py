"""Label files of YOLO: a line ``class x y width height`` for each object, in shares of the image."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lora_detr.data.coco.checks import Fault, Row
from lora_detr.data.coco.report import Problem
from lora_detr.data.coco.source import Report, Source, Take
from lora_detr.data.layouts.layout import walk_images
from lora_detr.data.progress import following
from lora_detr.errors import DataError, counted, listed, printable
from lora_detr.json_value import is_number
from lora_detr.regular_files import read_regular

MAX_LABEL_BYTES = 16_000_000
"""More than outlines of ten thousand objects need."""

MARGIN = 0.01
"""Share of the image that coordinates may lie outside of it: exporters round."""

_PIECE = 10_000  # rows that are given on at once
_OTHER_TEXTS = ("classes.txt", "notes.txt")  # of labelling tools, beside the labels


class Listed(NamedTuple):
    """Name of an image, and file and line of the list that has it; empty if it was found in a folder."""

    name: str
    place: str = ""


class YoloSource(Source):
    """A split of a YOLO set. The id of a category is the number of its class, that of an image its place by name.

    Args:
        path: the YAML file.
        images: folder that names are relative to.
        split: its key in the YAML file.
        folders: of images.
        listed: more images.
        names: name by class.
        keypoints: how many numbers follow a box, if the set has key points.
        root: folder that messages name label files relative to.
    """

    reads_sizes = True
    relative = True

    def __init__(
        self,
        path: Path,
        images: Path,
        split: str,
        folders: Sequence[str],
        listed: Sequence[Listed],
        names: Mapping[int, str],
        keypoints: int,
        root: Path,
    ) -> None:
        super().__init__(path, images, f"{path.name} ({split})")
        self.names, self.keypoints, self.root = names, keypoints, root
        self._folders, self._own = folders, listed
        self._lines, self._images = array("I"), array("I")  # of each annotation
        self._polygons = self._repeated = 0

    def files(self) -> Iterable[str]:
        """Return the YAML file, folders of images and labels, and images of lists with their label files."""
        images = [os.path.join(self.images, each.name) for each in self._own]
        folders = [os.path.dirname(label_of(f"{folder}/x")) for folder in self._folders]
        return [str(self.path), *self._folders, *folders, *images, *map(label_of, images)]

    @cached_property
    def _listed(self) -> list[Listed]:
        """All images, by name."""
        found = [*self._own]
        for folder in self._folders:
            prefix = os.path.relpath(folder, self.images)
            prefix = "" if prefix == "." else f"{prefix}/"
            found += [Listed(f"{prefix}{name}") for name in walk_images(Path(folder))]
        return sorted(found)

    def place(self, section: str, index: int) -> str:
        """Return label file and line of an annotation, the image or its line in a list, or the class."""
        if section == "annotations":
            return f"{self._shown(self._label(self._images[index]))}:{self._lines[index]}"
        if section == "images":
            return self._listed[index].place or self._shown(os.path.join(self.images, self._listed[index].name))
        return f"{self.path.name}: names[{index}]"

    def read(self, take: Take, report: Report, *, allow_outside: bool) -> Row:
        """Read all label files; an image without one has no objects."""
        if not self._listed:
            places = ", ".join(self._folders) or "its lists"
            raise DataError(f"{self.name}: expected at least one image, found 0 in {places}", code="S01")
        rows: list[Row] = []
        self.notes.clear()
        self._lines, self._images = array("I"), array("I")
        self._polygons = self._repeated = 0
        for index, each in enumerate(following(self._listed, len(self._listed), f"{self.name}: read labels of")):
            if allow_outside or not leads_out(each.name):  # else the check of the image reports it
                rows += self._read(index, report)
            if len(rows) >= _PIECE:
                take(rows)
                rows = []
        take(rows)
        if self._polygons:
            self.notes.append(f"{counted(self._polygons, 'outline')}: read as the boxes around them")
        if self._repeated:
            self.notes.append(f"{counted(self._repeated, 'repeated label line')}: read once")
        if not self._own:  # labels of what is not listed belong to another split
            self._note_unused()
        return {
            "images": [{"id": i, "file_name": each.name} for i, each in enumerate(self._listed, start=1)],
            "categories": [{"id": i, "name": name} for i, name in self.names.items()],
        }

    def _label(self, index: int) -> str:
        return label_of(os.path.join(self.images, self._listed[index].name))

    def _shown(self, path: str) -> str:
        inside = os.path.relpath(path, self.root)
        return path if leads_out(inside) else inside

    def _read(self, index: int, report: Report) -> list[Row]:
        """Return the annotations of an image."""
        path = self._label(index)
        try:
            text = read_regular(path, MAX_LABEL_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = f"the label file cannot be read: {error.strerror}"
            report(Problem("D01", f"{self._shown(path)}: {reason}"))
            return []
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            what = f"not text: byte 0x{error.object[error.start]:02x} is not UTF-8"
            report(Problem("D01", f"{self._shown(path)}:{line}: {what}"))
            return []
        rows = []
        seen = set()
        for number, written in enumerate(text.splitlines(), start=1):
            fields = tuple(written.split())
            if not fields:
                continue
            if fields in seen:
                self._repeated += 1
                continue
            seen.add(fields)
            category, box = self._parsed(fields)
            area = 0.0 if isinstance(box, Fault) else max(0.0, box[2] * box[3])
            self._lines.append(number)
            self._images.append(index)
            rows.append(
                {
                    "id": len(self._lines),
                    "image_id": index + 1,
                    "category_id": category,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
        return rows

    def _parsed(self, fields: Sequence[str]) -> tuple[Any, list[float] | Fault]:
        """Return class and box of a line; the box is x, y, width and height of its upper left corner."""
        try:
            first, *numbers = map(float, fields)
        except ValueError:
            text = next(field for field in fields if not is_number(field))
            return 0, Fault("D09", f"expected numbers, found {printable(text[:20])!r}", "text")
        category = int(first) if first.is_integer() else first
        count = len(numbers)
        if self.keypoints and count == 4 + self.keypoints:
            numbers, count = numbers[:4], 4
        if count != 4 and (count < 6 or count % 2 or self.keypoints):
            wanted = "" if self.keypoints == 0 else f" and {self.keypoints} numbers of key points"
            or_outline = ", or `class x1 y1 x2 y2 x3 y3 ...`" if self.keypoints == 0 else ""
            what = f"expected `class x y width height`{wanted}{or_outline}, found {counted(count + 1, 'number')}"
            return category, Fault("D09", what, f"{count} numbers")
        wrong = [number for number in numbers if not -MARGIN <= number <= 1 + MARGIN]  # not a number is among them
        if wrong:
            return category, Fault("D09", f"expected shares of the image from 0 to 1, found {wrong[0]}", "range")
        if count == 4:
            x, y, width, height = numbers
            return category, [x - width / 2, y - height / 2, width, height]
        self._polygons += 1
        left, top = min(numbers[::2]), min(numbers[1::2])
        return category, [left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top]

    def _note_unused(self) -> None:
        """Note label files that belong to no image, such as one that was renamed."""
        used = {self._label(index) for index in range(len(self._listed))}
        unused = []
        for folder in sorted({os.path.dirname(label) for label in used}):
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no image of the folder has objects
                continue
            paths = [os.path.join(folder, name) for name in names if name.endswith(".txt") and name not in _OTHER_TEXTS]
            unused += [self._shown(path) for path in paths if path not in used]
        if unused:
            self.notes.append(f"{counted(len(unused), 'label file')} without an image: not read ({listed(unused)})")


def label_of(image: str) -> str:
    """Return the label file of an image: in ``labels/`` in place of the last ``images/`` of its path."""
    before, found, after = image.rpartition("/images/")
    return os.path.splitext(f"{before}/labels/{after}" if found else image)[0] + ".txt"


def leads_out(name: str) -> bool:
    """Return whether a normal file name is absolute or leads out of its folder."""
    return os.path.isabs(name) or name == ".." or name.startswith("../")
