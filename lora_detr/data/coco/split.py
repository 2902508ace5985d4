"""Reading a COCO annotation file into flat arrays, with every fault found and counted."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.coco.annotations import AnnotationChecker, AnnotationColumns
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.checks import Findings, OnBadData, check_categories, check_images
from lora_detr.data.coco.files import ImageFolder
from lora_detr.data.coco.fingerprint import fingerprint
from lora_detr.data.coco.image_files import ImageFiles, check_files
from lora_detr.data.coco.plausibility import box_doubt
from lora_detr.data.coco.records import ImageTable, make_table
from lora_detr.data.coco.report import AnnotationError, CategoryCount, DataReport, Problem
from lora_detr.data.coco.source import JsonSource, Source
from lora_detr.data.quality.finding import PLACES
from lora_detr.errors import DataError, counted, printable
from lora_detr.json_value import JSON

CLIP_TOLERANCE = 1e-6
"""Pixels a corner may move without counting as clipped: the rounding of x + width."""

_ARE = ("category is", "categories are")


@dataclass(frozen=True)
class GroundTruth:
    """What detections are compared with: all usable annotations, crowd included, by (image id, annotation id).

    Attributes:
        image_ids: int64 [n].
        category_ids: int64 [n], original ids.
        boxes_xywh_pixels: float64 [n, 4], as stored: not clipped.
        areas: float64 [n], pixels.
        crowd: bool [n].
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh_pixels: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def of_images(self, image_ids: Iterable[int]) -> GroundTruth:
        """Return the part that belongs to some images."""
        kept = np.isin(self.image_ids, np.array(sorted(image_ids), dtype=np.int64))
        return GroundTruth(
            self.image_ids[kept],
            self.category_ids[kept],
            self.boxes_xywh_pixels[kept],
            self.areas[kept],
            self.crowd[kept],
        )


@dataclass(frozen=True)
class CocoSplit:
    """One annotation file with its images.

    Attributes:
        records: by rising image id, whatever the order in the file.
        categories: labels of the model; the file's own categories unless ``with_categories`` changed it.
        ground_truth: for evaluation.
        report: what was counted, dropped and repaired.
        annotations_path: the file.
        digests: uint8 [n, 32], SHA-256 of the file of each image, zeros where it could not be read; None where the
            files have not been verified.
    """

    records: ImageTable
    categories: CategoryMap
    ground_truth: GroundTruth
    report: DataReport
    annotations_path: Path
    digests: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the records, rising."""
        return tuple(self.records.ids.tolist())

    @cached_property
    def fingerprint(self) -> dict[str, JSON]:
        """Part of the data -> SHA-256: tells whether a resumed run sees the same data, and what differs."""
        truth = self.ground_truth
        columns = (truth.image_ids, truth.category_ids, truth.boxes_xywh_pixels, truth.areas, truth.crowd)
        return fingerprint(self.records, self.categories, columns, self.digests)

    def with_digests(self, digests: Mapping[int, bytes]) -> CocoSplit:
        """Return the split with the SHA-256 of image files, given by image id."""
        found = b"".join(digests.get(image_id, bytes(32)) for image_id in self.image_ids)
        return replace(self, digests=np.frombuffer(found, dtype=np.uint8).reshape(-1, 32))

    def with_categories(self, categories: CategoryMap) -> CocoSplit:
        """Return the split with the labels of a model, such as those of the training split.

        Raises:
            DataError: D10, an object's category is not among them, or has another name.
        """
        used = np.unique(self.ground_truth.category_ids).tolist()
        unknown = [category_id for category_id in used if category_id not in categories]
        if unknown:
            named = ", ".join(f"{i} '{printable(self.categories.names_by_id.get(i, ''))}'" for i in unknown[:5])
            raise DataError(
                f"{self.report.file}: {counted(len(unknown), *_ARE)} not among the model's: {named}",
                "use annotation files with the same categories",
                code="D10",
            )
        own, names = self.categories.names_by_id, categories.names_by_id
        renamed = [
            f"{i} '{printable(own.get(i))}', not '{printable(names.get(i))}'"
            for i in used
            if own.get(i) != names.get(i)
        ]
        if renamed:
            raise DataError(
                f"{self.report.file}: {counted(len(renamed), *_ARE)} named differently in the model: "
                + ", ".join(renamed[:5]),
                "use annotation files with the same ids and names",
                code="D10",
            )
        return replace(self, categories=categories)

    def subset(self, image_ids: Iterable[int]) -> CocoSplit:
        """Return the split with only some of its images, in records and ground truth; the report stays.

        Raises:
            DataError: no image is left, or an id is unknown.
        """
        wanted = set(image_ids)
        indices = np.flatnonzero(np.isin(self.records.ids, np.array(sorted(wanted), dtype=np.int64)))
        if not len(indices) or len(indices) != len(wanted):
            missing = sorted(wanted - set(self.image_ids))
            raise DataError(f"{self.report.file}: cannot take images {missing[:5]} of {len(self)}")
        return replace(
            self,
            records=self.records.take(indices),
            ground_truth=self.ground_truth.of_images(wanted),
            digests=None if self.digests is None else self.digests[indices],
        )

    def without(self, image_ids: Iterable[int]) -> CocoSplit:
        """Return the split without some of its images, as ``subset`` does; the same split if there are none."""
        left_out = set(image_ids)
        return self.subset(set(self.image_ids) - left_out) if left_out else self


def load_coco(
    annotations: Path,
    images: Path,
    *,
    strict: bool = False,
    on_bad_data: OnBadData = "error",
    check_files: bool = True,
    allow_outside: bool = False,
) -> CocoSplit:
    """Read and check a COCO file.

    Args:
        annotations: COCO JSON.
        images: folder that ``file_name`` is relative to.
        strict: see ``load_split``, also for what follows.
        on_bad_data: see there.
        check_files: see there.
        allow_outside: see there.
    """
    return load_split(
        JsonSource(annotations, images),
        strict=strict,
        on_bad_data=on_bad_data,
        check_files=check_files,
        allow_outside=allow_outside,
    )


def load_split(
    source: Source,
    *,
    strict: bool = False,
    on_bad_data: OnBadData = "error",
    check_files: bool = True,
    allow_outside: bool = False,
) -> CocoSplit:
    """Read and check a split.

    Crowd regions are removed from training, boxes clipped to their image, and boxes without width or height dropped,
    as the official code does. Images without objects are kept.

    Args:
        source: gives the rows.
        strict: a box without width or height, or outside its image, is an error; so are boxes of another convention.
        on_bad_data: ``skip`` drops and counts malformed, negative and non-finite boxes.
        check_files: every image file must be there.
        allow_outside: file names may lead out of the folder of images.

    Returns:
        The split, with the categories of the source in the order of their ids.

    Raises:
        DataError: the file cannot be read (D01), or has no image (S01).
        AnnotationError: everything wrong with its contents, all at once.
    """
    with _paused_collector():
        return _load(source, strict, on_bad_data, check_files, allow_outside)


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the search for reference cycles: parsed JSON has none, and looking costs a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(source: Source, strict: bool, on_bad_data: OnBadData, check_all: bool, allow_outside: bool) -> CocoSplit:
    name, place = source.name, source.place
    checker = AnnotationChecker(name, on_bad_data, place)
    problems: list[Problem] = []
    root = source.read(checker.add, problems.append, allow_outside=allow_outside)
    found_categories = Findings(name, "categories", root["categories"], place=place)
    found_images = Findings(name, "images", root["images"], place=place)

    names = check_categories(found_categories)
    image_ids = check_images(found_images, reads_sizes=source.reads_sizes)
    problems += found_categories.problems + found_images.problems
    if not root["images"]:
        raise DataError(f"{name}: expected at least one image, found 0 in 'images'", f"check {source.path}", code="S01")
    if not root["categories"]:
        problems.append(Problem("D02", f"{name}: expected at least one category, found 0 in 'categories'"))

    files = ImageFiles([], [], [], 0)
    if not (found_categories.problems or found_images.problems or not root["categories"]):  # the names are strings then
        folder = ImageFolder(source.images, allow_outside=allow_outside, must_exist=check_all)
        files = check_files(found_images, folder, on_bad_data)
        problems += found_images.problems
    faulty = {"images": found_images.problems, "categories": found_categories.problems}
    sound = [section for section, faults in faulty.items() if not faults]
    columns = checker.columns(sorted({i for i in image_ids if i is not None}), names, sound=sound)
    problems += checker.problems
    del checker
    if problems:
        raise AnnotationError(source.path, problems)

    rows = [
        (image_id, file_name, row["width"], row["height"])
        for image_id, file_name, row in zip(image_ids, files.names, found_images.rows, strict=True)
    ]
    rows.sort(key=lambda row: row[0])
    if files.missing or files.unreadable:
        left_out = sorted(image_ids[i] for i in (*files.missing, *files.unreadable))
        there = ~np.isin(np.array([row[0] for row in rows], dtype=np.int64), np.array(left_out, dtype=np.int64))
        rows = [row for row, is_there in zip(rows, there.tolist(), strict=True) if is_there]
        columns = columns.of_images(there)
    sizes = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 2)
    if source.relative:
        columns = columns.in_pixels(sizes)
    doubt = box_doubt(columns.boxes, sizes[columns.images], columns.areas)
    if strict and doubt:
        raise AnnotationError(source.path, [Problem("D28", f"{name}: {doubt}")])
    boxes, visible, dropped = _clip(columns, sizes)
    if strict and not visible.all():
        raise AnnotationError(source.path, _strict_problems(source, [row[0] for row in rows], columns, visible))
    kept = visible & ~columns.crowd
    order = np.flatnonzero(kept)
    order = order[np.lexsort((columns.ids[order], columns.images[order]))]
    object_counts = np.bincount(columns.images[kept], minlength=len(rows))
    records = make_table(source.images, rows, boxes[order], columns.categories[order], object_counts)
    category_names = [row["name"] for row in found_categories.rows]
    report = DataReport(
        file=name,
        images=len(records),
        images_without_objects=int((object_counts == 0).sum()),
        objects=int(kept.sum()),
        categories=len(names),
        crowd=int((visible & columns.crowd).sum()),
        bad_boxes=columns.bad_boxes,
        box_doubt=doubt,
        missing_files=tuple(found_images.rows[i]["file_name"] for i in files.missing),
        unreadable_files=tuple(found_images.rows[i]["file_name"] for i in files.unreadable),
        other_separators=files.other_separators,
        missing_area=columns.missing_area,
        missing_iscrowd=columns.missing_iscrowd,
        duplicate_file_names=len(rows) - len({row[1] for row in rows}),
        duplicate_category_names=len(category_names) - len(set(category_names)),
        per_category=_per_category(names, records.category_ids),
        notes=tuple(source.notes),
        places={key: _places(source, rows, columns, chosen) for key, chosen in dropped.items() if chosen.any()},
        **{key: int(chosen.sum()) for key, chosen in dropped.items()},
    )
    truth = _ground_truth(records.ids, columns, visible)
    return CocoSplit(records, CategoryMap.from_categories(names), truth, report, source.path)


def _per_category(names: dict[int, str], category_ids: NDArray[np.int64]) -> tuple[CategoryCount, ...]:
    ids, counts = np.unique(category_ids, return_counts=True)
    objects = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return tuple(CategoryCount(i, names[i], objects.get(i, 0)) for i in sorted(names))


def _clip(
    columns: AnnotationColumns, image_sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """Return corners clipped to the image [n, 4], which boxes keep a width and height, and which were changed and how.

    Sizes are [images, 2], width and height. The decision is made in float32, in which boxes are used, so that no kept
    box is empty later.
    """
    sizes = image_sizes[columns.images]  # [n, 2]
    with np.errstate(over="ignore"):
        corners = np.concatenate((columns.boxes[:, :2], columns.boxes[:, :2] + columns.boxes[:, 2:]), axis=1)
    clipped = np.clip(corners, 0.0, np.tile(sizes, 2))
    boxes = clipped.astype(np.float32)
    visible: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    positive = (columns.boxes[:, 2:] > 0).all(axis=1)
    outside = ~visible & positive & ~(clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    moved = (np.abs(corners - clipped) > CLIP_TOLERANCE).any(axis=1)
    return boxes, visible, {"outside": outside, "zero_size": ~visible & ~outside, "clipped": visible & moved}


def _places(
    source: Source, images: list[tuple[int, str, int, int]], columns: AnnotationColumns, chosen: NDArray[np.bool_]
) -> tuple[str, ...]:
    """Return where the first few of the chosen annotations are."""
    return tuple(
        f"{_where(source, images[columns.images[i]][0], columns, i)}: bbox {columns.boxes[i].tolist()}"
        for i in np.flatnonzero(chosen)[:PLACES].tolist()
    )


def _where(source: Source, image_id: int, columns: AnnotationColumns, i: int) -> str:
    row = int(columns.rows[i])
    known = f"id={columns.ids[i]}, image_id={image_id}"
    return source.place("annotations", row) or f"{source.name}: annotations[{row}] ({known})"


def _strict_problems(
    source: Source, image_ids: list[int], columns: AnnotationColumns, visible: NDArray[np.bool_]
) -> list[Problem]:
    problems = []
    for i in np.flatnonzero(~visible).tolist():
        where = _where(source, image_ids[columns.images[i]], columns, i)
        box = columns.boxes[i].tolist()
        if min(box[2:]) > 0:
            problems.append(Problem("D16", f"{where}: bbox {box} lies outside the image"))
        else:
            problems.append(Problem("D07", f"{where}: bbox {'width' if box[2] == 0 else 'height'} 0 must be > 0"))
    return problems


def _ground_truth(image_ids: NDArray[np.int64], columns: AnnotationColumns, visible: NDArray[np.bool_]) -> GroundTruth:
    kept = np.flatnonzero(visible)
    kept = kept[np.lexsort((columns.ids[kept], columns.images[kept]))]
    return GroundTruth(
        image_ids[columns.images[kept]],
        columns.categories[kept],
        columns.boxes[kept],
        columns.areas[kept],
        columns.crowd[kept],
    )
