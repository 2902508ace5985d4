"""A split of XML files of Pascal VOC."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

from lora_detr.data.coco.checks import Fault, Row
from lora_detr.data.coco.report import Problem
from lora_detr.data.coco.source import AUTO, ReadAs, Report, Source, Take
from lora_detr.data.layouts.layout import is_image
from lora_detr.data.layouts.voc_xml import CORNERS, MAX_XML_BYTES, Annotation, XmlFault, parse
from lora_detr.data.progress import following
from lora_detr.errors import counted, listed, nearest, printable
from lora_detr.json_value import is_number
from lora_detr.regular_files import read_regular

_PIECE = 10_000  # rows that are given on at once
_FLAGS = {"": False, "0": False, "1": True, "true": True, "false": False}


class XmlFile(NamedTuple):
    """An XML file: its name without ending, its path, and what messages call it."""

    stem: str
    path: str
    place: str


@dataclass
class _Parsed:
    """All files of a split, object after object."""

    images: list[Row] = field(default_factory=list)
    ends: array[int] = field(default_factory=lambda: array("q", [0]))  # of the objects of each image
    names: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("I"))  # of each object in its file
    corners: array[float] = field(default_factory=lambda: array("d"))
    difficult: array[int] = field(default_factory=lambda: array("b"))
    faults: dict[int, Fault] = field(default_factory=dict)  # of objects whose corners are no numbers
    problems: list[Problem] = field(default_factory=list)
    touches: bool = False  # whether a box ends at the last pixel of its image
    lowest: float = inf  # of all coordinates


class VocSource(Source):
    """A split of XML files. Categories are the sorted names of the training split, by ids from 1.

    Args:
        path: list or folder that stands for the split.
        images: folder of the images.
        name: see ``Source``.
        xml: its files.
        how: what coordinates and difficult objects are.
        train: the training split, if this is another one.
        unlisted: whether images without an XML file are reported.
    """

    reads_sizes = True

    def __init__(
        self,
        path: Path,
        images: Path,
        name: str,
        xml: Sequence[XmlFile],
        how: ReadAs,
        train: VocSource | None = None,
        *,
        unlisted: bool = False,
    ) -> None:
        super().__init__(path, images, name)
        self.xml, self.how, self.unlisted = xml, how, unlisted
        self.train = train or self
        self._rows = array("q")  # object of each annotation

    def files(self) -> Iterable[str]:
        """Return the list, and the folders of XML files and images, also those of the training split."""
        folders = sorted({os.path.dirname(each.path) for each in self.xml})
        own = [str(self.path), str(self.images), *folders]
        return own if self.train is self else [*own, *self.train.files()]

    def settings(self) -> tuple[object, ...]:
        """Return how coordinates and difficult objects are read."""
        return (self.how.voc_offset, self.how.voc_difficult, self.unlisted)

    def place(self, section: str, index: int) -> str:
        """Return XML file and object of an annotation, the XML file of an image, or the category."""
        if section == "annotations":
            return self._place_of(self._rows[index])
        return self.xml[index].place if section == "images" else f"{self.train.name}: categories[{index}]"

    def _place_of(self, index: int) -> str:
        """Return file and place of an object, by its place among all of them."""
        image = bisect_right(self._parsed.ends, index) - 1
        return f"{self.xml[image].place}: object[{self._parsed.places[index]}]"

    @cached_property
    def classes(self) -> list[str]:
        """Names of the training split, sorted."""
        return sorted(set(self.train._parsed.names))

    @cached_property
    def offset(self) -> int:
        """What the coordinates of the first pixel are: 1 in the challenge, 0 of most tools.

        By default 1 if no box of the training split begins at 0 and one ends where its image does.
        """
        if self.how.voc_offset != AUTO:
            return int(self.how.voc_offset)
        parsed = self.train._parsed
        return int(parsed.touches and parsed.lowest > 0)

    def read(self, take: Take, report: Report, *, allow_outside: bool) -> Row:
        """Give what all files hold."""
        parsed, ids = self._parsed, {name: i for i, name in enumerate(self.classes, start=1)}
        for problem in parsed.problems:
            report(problem)
        self._report_unknown(report, ids)
        ignores = self.how.voc_difficult == "ignore"
        self._rows = array("q")
        rows: list[Row] = []
        ends = parsed.ends
        for image in range(len(self.xml)):
            for i in range(ends[image], ends[image + 1]):
                if parsed.names[i] not in ids:
                    continue  # reported
                left, top, right, bottom = parsed.corners[4 * i : 4 * i + 4]
                left, top = left - self.offset, top - self.offset
                self._rows.append(i)
                crowd = int(ignores and parsed.difficult[i] == 1)
                box = parsed.faults.get(i) or [left, top, right - left, bottom - top]
                area = max(0.0, right - left) * max(0.0, bottom - top)
                area = area if isfinite(area) else 0.0  # the box is reported
                row = {"id": len(self._rows), "image_id": image + 1, "category_id": ids[parsed.names[i]]}
                rows.append({**row, "bbox": box, "area": area, "iscrowd": crowd})
            if len(rows) >= _PIECE:
                take(rows)
                rows = []
        take(rows)
        self._note(parsed, ignores)
        # Copies: sizes that are missing are filled in by whoever reads the images.
        return {
            "images": [dict(row) for row in parsed.images],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }

    def _note(self, parsed: _Parsed, ignores: bool) -> None:
        self.notes.clear()
        if self.how.voc_offset == AUTO:
            self.notes.append(f"boxes: taken to count pixels from {self.offset} (data.voc_offset sets it)")
        difficult = sum(each == 1 for each in parsed.difficult)
        if difficult and not ignores:
            self.notes.append(f"{counted(difficult, 'difficult object')}: kept")
        if self.unlisted:
            used = {row["file_name"] for row in parsed.images}
            others = sorted(name for names in self._stems.values() for name in names if name not in used)
            if others:
                count = counted(len(others), "image")
                self.notes.append(f"{count} without an XML file: left out ({listed(others)})")

    def _report_unknown(self, report: Report, ids: dict[str, int]) -> None:
        """Report names that the training split does not have, each once."""
        parsed = self._parsed
        counts = Counter(name for name in parsed.names if name not in ids)
        for name, count in counts.items():
            where = self._place_of(parsed.names.index(name))
            more = f" ({counted(count, 'object')})" if count > 1 else ""
            close = nearest(name, ids)
            what = f"name '{printable(name)}' is not in the training split {self.train.name}{more}{close}"
            report(Problem("D10", f"{where}: {what}"))

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """Image files by name without ending."""
        stems: dict[str, list[str]] = {}
        try:
            names = sorted(os.listdir(self.images))
        except OSError:
            return stems
        for name in filter(is_image, names):
            stems.setdefault(os.path.splitext(name)[0], []).append(name)
        return stems

    @cached_property
    def _parsed(self) -> _Parsed:
        parsed = _Parsed()
        for number, each in enumerate(following(self.xml, len(self.xml), f"{self.name}: read XML of"), start=1):
            try:
                found = parse(read_regular(each.path, MAX_XML_BYTES))
            except OSError as error:
                reason = f"the XML file cannot be read: {error.strerror}"
                parsed.problems.append(Problem("D01", f"{each.place}: {reason}"))
                found = Annotation()
            except XmlFault as fault:
                parsed.problems.append(Problem("D01", f"{each.place}:{fault.line}: {fault.message}"))
                found = Annotation()
            image = self._image_of(each, found)
            candidates = self._stems.get(each.stem, [])
            if len(candidates) > 1 and image not in candidates:
                what = f"expected one image of this name, found {' and '.join(map(printable, candidates))}"
                parsed.problems.append(Problem("D17", f"{each.place}: {what}"))
            _add(parsed, number, each, found, image)
        return parsed

    def _image_of(self, xml: XmlFile, found: Annotation) -> str:
        """Return the image of an XML file: of the same name, since ``filename`` in it is often another one."""
        stated = found.values.get("filename", "").replace("\\", "/")
        candidates = self._stems.get(xml.stem, [])
        return candidates[0] if len(candidates) == 1 else stated or f"{xml.stem}.jpg"


def _add(parsed: _Parsed, number: int, xml: XmlFile, found: Annotation, image: str) -> None:
    row: Row = {"id": number, "file_name": image}
    width, height = (_whole(found.values.get(f"size/{key}", "")) for key in ("width", "height"))
    if width > 0 and height > 0:  # tools that did not know them write 0
        row |= {"width": width, "height": height}
    parsed.images.append(row)
    for place, values in enumerate(found.objects):
        index = len(parsed.names)
        if not values.get("name"):
            parsed.problems.append(Problem("D02", f"{xml.place}: object[{place}]: expected a <name>, found none"))
            continue
        difficult = values.get("difficult", "").lower()
        if difficult not in _FLAGS:
            what = f"difficult must be 0 or 1, found '{printable(difficult[:20])}'"
            parsed.problems.append(Problem("D15", f"{xml.place}: object[{place}]: {what}"))
        parsed.names.append(values["name"])
        parsed.places.append(place)
        parsed.difficult.append(_FLAGS.get(difficult, False))
        corners = _corners(values)
        if isinstance(corners, Fault):
            parsed.faults[index] = corners
            corners = [0.0] * 4
        else:
            parsed.touches |= corners[2] == width or corners[3] == height
            parsed.lowest = min(parsed.lowest, *corners)
        parsed.corners.extend(corners)
    parsed.ends.append(len(parsed.names))


def _corners(values: dict[str, str]) -> list[float] | Fault:
    try:
        return [float(values[f"bndbox/{corner}"]) for corner in CORNERS]
    except KeyError as error:
        return Fault("D09", f"expected <{str(error.args[0]).replace('/', '><')}>, found none", str(error))
    except ValueError:
        texts = {corner: values[f"bndbox/{corner}"] for corner in CORNERS}
        corner, text = next((key, text) for key, text in texts.items() if not is_number(text))
        return Fault("D09", f"{corner} must be a number, found '{printable(text[:20])}'", corner)


def _whole(text: str) -> int:
    """Return a number of pixels; 0 if it is none."""
    try:
        return int(float(text)) if len(text) < 20 else 0
    except (ValueError, OverflowError):
        return 0
