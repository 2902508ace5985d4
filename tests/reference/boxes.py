"""Overlap and distance of two boxes, as scalars.

A box is (cx, cy, w, h): four Python floats, or four 0-dimensional tensors when a gradient is wanted. ``max`` and
``min`` of Python serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def corners(box: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Return (left, top, right, bottom)."""
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def intersection_and_union(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, Any]:
    """Return the areas of intersection and union."""
    left1, top1, right1, bottom1 = corners(first)
    left2, top2, right2, bottom2 = corners(second)
    width = min(right1, right2) - max(left1, left2)
    height = min(bottom1, bottom2) - max(top1, top2)
    # `* 0` keeps a tensor a tensor.
    intersection = width * height if width > 0 and height > 0 else (width + height) * 0
    area1 = (right1 - left1) * (bottom1 - top1)
    area2 = (right2 - left2) * (bottom2 - top2)
    return intersection, area1 + area2 - intersection


def iou(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Return intersection over union in [0, 1]; 0 when both boxes have no area."""
    intersection, union = intersection_and_union(first, second)
    return intersection / union if union > 0 else intersection


def giou(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Return generalised IoU in [-1, 1]: IoU minus the share of the enclosing box that neither box covers."""
    left1, top1, right1, bottom1 = corners(first)
    left2, top2, right2, bottom2 = corners(second)
    enclosing = (max(right1, right2) - min(left1, left2)) * (max(bottom1, bottom2) - min(top1, top2))
    intersection, union = intersection_and_union(first, second)
    if not (union > 0 and enclosing > 0):
        return intersection
    return intersection / union - (enclosing - union) / enclosing


def l1(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Return the sum of the absolute differences of the four (cx, cy, w, h) coordinates."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))
