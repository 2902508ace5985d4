"""Data against a detector: more objects than it can find, and objects too small to be seen at its input size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.quality.finding import PLACES, Finding
from lora_detr.data.quality.places import image_place, object_places
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.errors import counted

SMALL = 8.0
"""Pixels of the shorter side of an object, after resizing, below which it is hard to find: the finest stride."""

SMALL_SHARE = 0.05
"""Share of such objects from which they are worth a word."""

_STEP = 32
"""Input sizes and tiles are given as multiples of it."""

_LEAST_TILE = 64

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class DetectorLimits:
    """What a detector is given, and how much it can find.

    Attributes:
        queries: detections that it makes of an image.
        queries_key: key path of that setting.
        detections: how many of them are kept.
        prepared: how images are resized.
        tiles: side in pixels of the tiles that it is trained on; None for whole images.
    """

    queries: int
    queries_key: str
    detections: int
    prepared: EvalTransformConfig
    tiles: int | None = None


def limit_findings(splits: Sequence[CocoSplit], limits: DetectorLimits) -> list[Finding]:
    """Return in which way splits ask for more than a detector can do; the training split comes first."""
    found = []
    for place, split in enumerate(splits):
        found += _crowded(split, limits, is_trained=place == 0)
    return found + (_small(splits[0], limits) if splits else [])


def _crowded(split: CocoSplit, limits: DetectorLimits, *, is_trained: bool) -> list[Finding]:
    counts = split.records.object_counts
    findings: list[Finding] = []
    for code, limit, noun, remedy in (
        ("Q09", limits.queries, f"{limits.queries} queries", f"--set {limits.queries_key}=N raises them"),
        (
            "Q10",
            limits.detections,
            f"{limits.detections} detections that are kept",
            "--set evaluation.max_detections=N keeps more, of which COCO's AP counts 100",
        ),
    ):
        crowded = np.flatnonzero(counts > limit)
        if not len(crowded) or (findings and limit >= limits.queries):  # that many are not found at all
            continue
        lost = int((counts[crowded] - limit).sum())
        loss = counted(lost, "object") + " cannot be found"
        if code == "Q09" and is_trained:
            loss = counted(lost, "object of an epoch goes", "objects of an epoch go") + " unmatched"
        findings.append(
            Finding(
                code,
                "warning",
                len(crowded),
                f"{split.report.file}: {counted(len(crowded), 'image has', 'images have')} more objects than the "
                f"{noun} (at most {counts.max():,}): {loss}",
                tuple(f"{image_place(split, i)}: {counts[i]:,} objects" for i in crowded[:PLACES].tolist()),
                remedy,
            )
        )
    return findings


def shorter_sides(split: CocoSplit, limits: DetectorLimits) -> Pixels:
    """Return the shorter side of each object in pixels after resizing."""
    return _relative_sides(split, limits) * limits.prepared.size


def _relative_sides(split: CocoSplit, limits: DetectorLimits) -> Pixels:
    """Return the shorter side of each object after resizing, for each pixel of the input size."""
    table, prepared = split.records, limits.prepared
    sizes = np.stack((table.widths, table.heights), axis=1).astype(np.float64)
    if limits.tiles is not None:
        sizes = np.minimum(sizes, limits.tiles)
    if prepared.square:
        scales = 1 / sizes
    else:
        longest = math.inf if prepared.max_size is None else prepared.max_size / prepared.size
        scale = np.minimum(1 / sizes.min(axis=1), longest / sizes.max(axis=1))
        scales = np.stack((scale, scale), axis=1)
    boxes = table.boxes_xyxy_pixels.astype(np.float64)
    sides = (boxes[:, 2:] - boxes[:, :2]) * np.repeat(scales, table.object_counts, axis=0)
    return np.asarray(sides.min(axis=1))


def _small(split: CocoSplit, limits: DetectorLimits) -> list[Finding]:
    relative = _relative_sides(split, limits)
    small = np.flatnonzero(relative * limits.prepared.size < SMALL)
    if len(small) <= SMALL_SHARE * len(relative):
        return []
    share, prepared = len(small) / len(relative), limits.prepared
    both = f"{prepared.size}x{prepared.size}" if prepared.square else f"{prepared.size} (shorter side)"
    return [
        Finding(
            "Q11",
            "warning",
            len(small),
            f"{split.report.file}: {share:.0%} of {counted(len(relative), 'object')} ({len(small):,}) are less than "
            f"{SMALL:g} pixels wide or high at the input size of {both}",
            object_places(split, small.tolist()),
            _larger(split, limits, relative),
        )
    ]


def _larger(split: CocoSplit, limits: DetectorLimits, relative: Pixels) -> str:
    """Return what would make all but a few objects large enough."""
    prepared = limits.prepared
    size = wanted_size(relative)
    longer = prepared.max_size and round(size * prepared.max_size / prepared.size)
    settings = [f"--set data.evaluation.size={size}"]
    if longer and not prepared.square:
        settings += [f"--set data.evaluation.max_size={longer}", f"--set data.train.max_size={longer}"]
    remedy = f"an input size of {size} leaves at most {SMALL_SHARE:.0%} ({' '.join([*settings, _scales(size)])})"
    tile = _tile(split, limits)
    if tile is None:
        return remedy
    return (
        f"{remedy}; or train and predict on tiles of the photos (--set data.train.tiles={tile}, loradetr predict "
        f"--tiles {tile})"
    )


def _scales(size: int) -> str:
    return f"--set data.train.scales=[{size}]"


def wanted_size(relative: Pixels) -> int:
    """Return the input size at which at most ``SMALL_SHARE`` of objects are smaller than ``SMALL``.

    Args:
        relative: [n], shorter sides for each pixel of the input size; n may not be 0.
    """
    return _STEP * math.ceil(SMALL / _low(relative) / _STEP)


def _tile(split: CocoSplit, limits: DetectorLimits) -> int | None:
    """Return the side of tiles that enlarge all but a few objects enough; None if whole photos are no larger."""
    boxes = split.records.boxes_xyxy_pixels.astype(np.float64)
    side = limits.prepared.size * _low((boxes[:, 2:] - boxes[:, :2]).min(axis=1)) / SMALL
    tile = _STEP * math.floor(side / _STEP)
    longer = np.maximum(split.records.widths, split.records.heights)
    return tile if limits.tiles is None and _LEAST_TILE <= tile < np.median(longer) else None


def _low(sides: Pixels) -> float:
    """Return the longest side that at most ``SMALL_SHARE`` of all are shorter than."""
    place = min(len(sides) - 1, int(SMALL_SHARE * len(sides) + 1e-9))
    return float(np.partition(sides, place)[place])
