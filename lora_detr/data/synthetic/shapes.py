"""Outlines of the generated shapes, as signed distances.

Everything the generator draws comes from here and is made of additions, multiplications, minima and square roots only.
Those are exact in IEEE arithmetic, so a shape covers the same pixels on every machine and with every version of every
library, which a drawing library does not promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
"""A float32 array over the pixels of a window."""

Outline = Callable[[Plane, Plane], Plane]
"""Maps coordinates (u to the right, v downward), in units of the shape's radius, to the distance from the outline in
the same unit, negative inside. Every shape lies within ``REACH`` of the origin."""

REACH = 1.2


def _length(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


def _both(first: Plane, second: Plane) -> Plane:
    """Return the outline of what lies inside both."""
    distance: Plane = np.maximum(first, second)
    return distance


def _either(first: Plane, second: Plane) -> Plane:
    """Return the outline of what lies inside one of them."""
    distance: Plane = np.minimum(first, second)
    return distance


def _rectangle(u: Plane, v: Plane, half_width: float, half_height: float) -> Plane:
    return _both(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))


def _half_planes(u: Plane, v: Plane, sides: int, inradius: float) -> list[Plane]:
    """Return the signed distances to the ``sides`` lines around the origin, the first one below it."""
    planes = []
    for side in range(sides):
        angle = 2 * math.pi * side / sides
        # Rounded, because the last digit of sine and cosine differs between platforms.
        across, down = np.float32(round(math.sin(angle), 6)), np.float32(round(math.cos(angle), 6))
        planes.append(across * u + down * v - np.float32(inradius))
    return planes


def circle(u: Plane, v: Plane) -> Plane:
    """A disc."""
    return _length(u, v) - np.float32(1)


def square(u: Plane, v: Plane) -> Plane:
    """A square standing on a side."""
    return _rectangle(u, v, 0.8, 0.8)


def triangle(u: Plane, v: Plane) -> Plane:
    """An equilateral triangle standing on a side."""
    first, second, third = _half_planes(u, v - np.float32(0.1), 3, 0.55)
    return _both(_both(first, second), third)


def star(u: Plane, v: Plane) -> Plane:
    """A star of five points: what lies inside at least four of the five lines of a pentagram."""
    highest = second = np.full_like(u, -np.inf)
    for plane in _half_planes(u, v, 5, 0.36):
        second = _both(second, _either(highest, plane))
        highest = _both(highest, plane)
    return second


def cross(u: Plane, v: Plane) -> Plane:
    """Two crossed bars."""
    return _either(_rectangle(u, v, 1, 0.3), _rectangle(u, v, 0.3, 1))


def ring(u: Plane, v: Plane) -> Plane:
    """A disc with a hole."""
    return _both(_length(u, v) - np.float32(1), np.float32(0.5) - _length(u, v))


def crescent(u: Plane, v: Plane) -> Plane:
    """A disc from which a shifted disc is cut."""
    return _both(_length(u, v) - np.float32(1), np.float32(0.85) - _length(u - np.float32(0.55), v))


def semicircle(u: Plane, v: Plane) -> Plane:
    """Half a disc."""
    return _both(_length(u, v + np.float32(0.4)) - np.float32(1), -v - np.float32(0.4))


def bowtie(u: Plane, v: Plane) -> Plane:
    """Two triangles that meet at a point."""
    sides = (np.abs(v) - np.abs(u) - np.float32(0.06)) * np.float32(0.707)
    return _both(sides, np.abs(u) - np.float32(0.8))


def ell(u: Plane, v: Plane) -> Plane:
    """The letter L."""
    foot = _rectangle(u, v - np.float32(0.5), 0.75, 0.3)
    stem = _rectangle(u + np.float32(0.45), v, 0.3, 0.8)
    return _either(foot, stem)


def pill(u: Plane, v: Plane) -> Plane:
    """A slim bar with round ends; never labelled."""
    return _length(u - np.clip(u, np.float32(-0.8), np.float32(0.8)), v) - np.float32(0.2)


def lozenge(u: Plane, v: Plane) -> Plane:
    """A rhombus three times as long as wide; never labelled."""
    return (np.abs(u) + np.float32(3) * np.abs(v) - np.float32(0.9)) * np.float32(0.316)


def hatch(u: Plane, v: Plane) -> Plane:
    """Three parallel strokes; never labelled."""
    strokes = np.abs(np.abs(u) - np.float32(0.5))
    return _both(_either(strokes, np.abs(u)) - np.float32(0.1), np.abs(v) - np.float32(0.7))


LABELLED: dict[str, Outline] = {
    shape.__name__: shape for shape in (circle, square, triangle, star, cross, ring, crescent, semicircle, bowtie, ell)
}
"""Shapes that can be a class, by name. The order decides category ids: append only."""

UNLABELLED: tuple[Outline, ...] = (pill, lozenge, hatch)
"""Shapes drawn to distract."""
