"""One generated image: a cluttered background, distractors, and labelled shapes upon each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.synthetic.shapes import LABELLED, REACH, UNLABELLED, Outline, Plane, pill

Canvas = NDArray[np.floating[Any]]
"""float32 [H, W, 3], 0..255."""

Item = TypeVar("Item")

MIN_PIXELS = 12
"""A shape of fewer pixels cannot be told from another."""

MIN_INSIDE = 0.4
"""Share of a labelled shape that must lie inside the image."""

MIN_VISIBLE = 0.5
"""Share of a labelled shape's pixels in the image that later shapes must leave uncovered."""


class Dice:
    """Random choices made of one kind of draw.

    Only ``Generator.random`` is used: how it turns the bits of PCG64 into numbers is simple and has never changed,
    whereas NumPy reserves the right to improve how other distributions are drawn.

    Args:
        keys: the numbers that identify the stream.
    """

    def __init__(self, *keys: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(keys)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high]."""
        return low + int(self.uniform(0, high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return true with this probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """Return one of ``items``."""
        return items[self.integer(0, len(items) - 1)]

    def plane(self, *shape: int) -> Canvas:
        """Return an array of numbers in [0, 1)."""
        return self._generator.random(shape, dtype=np.float32)

    def color(self) -> Canvas:
        """Return a colour [3]: any hue, rather saturated, of any brightness but the darkest."""
        # Three levels in random order give every hue without a colour-space conversion.
        levels = [self.uniform(150, 255), self.uniform(20, 235), self.uniform(0, 90)]
        first = levels.pop(self.integer(0, 2))
        second = levels.pop(self.integer(0, 1))
        return np.array([first, second, levels[0]], dtype=np.float32)


@dataclass(frozen=True)
class Placed:
    """A labelled shape as it was drawn.

    Attributes:
        name: of its class.
        box: (left, top, width, height) in pixels, tight around its pixels inside the image, covered ones included.
        area: number of those pixels.
    """

    name: str
    box: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class _Stamp:
    """A shape on its window of the canvas: the rows and columns, and the distance in pixels from its outline."""

    rows: slice
    columns: slice
    distance: Plane
    inside: float
    """Share of the whole shape that the window shows."""


class Scene:
    """A canvas on which shapes are placed one after the other.

    Args:
        dice: source of every choice.
        height: of the image, in pixels.
        width: of the image, in pixels.
        clutter: how textured the background is and how many distractors there are; 0 to 1.
    """

    def __init__(self, dice: Dice, height: int, width: int, clutter: float) -> None:
        self._dice = dice
        self._clutter = clutter
        self._canvas: Canvas = np.clip(self._background(height, width), 0, 255)
        self._owner = np.zeros((height, width), dtype=np.int64)  # 1 + index of the topmost shape; 0 for none
        self._placed: list[Placed] = []

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The labelled shapes in drawing order."""
        return tuple(self._placed)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the image [H, W, 3]."""
        grain = (self._dice.plane(*self._canvas.shape[:2]) - np.float32(0.5)) * np.float32(2 + 5 * self._clutter)
        noisy = self._canvas + np.floor(grain)[:, :, None]
        rounded: Canvas = np.clip(np.floor(noisy + np.float32(0.5)), 0, 255)
        return rounded.astype(np.uint8)

    def distract(self, count: int) -> None:
        """Draw ``count`` things that are no objects: lines, patches of noise and unlabelled shapes."""
        size = max(self._canvas.shape)
        for _ in range(count):
            kind = self._dice.uniform()
            if kind < 0.35:
                self._line(0.5 * size)
            elif kind < 0.6:
                self._patch_of_noise(self._dice.uniform(0.04, 0.16) * size)
            else:
                outline = self._dice.choice(UNLABELLED)
                stamp = self._stamp(outline, self._dice.uniform(0.03, 0.12) * size)
                if stamp is not None:
                    self._paint(stamp)

    def place(self, name: str, radius: float) -> bool:
        """Draw one shape of class ``name`` at a random position; return false where it would not be recognisable.

        Nothing is drawn when too little of it is inside the image, or when it would hide too much of another one.
        """
        stamp = self._stamp(LABELLED[name], radius)
        if stamp is None or stamp.inside < MIN_INSIDE:
            return False
        mask = stamp.distance <= 0
        area = int(np.count_nonzero(mask))
        if area < MIN_PIXELS or self._hides_another(stamp, mask):
            return False
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = stamp.columns.start + int(columns[0]), stamp.rows.start + int(rows[0])
        box = (left, top, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)
        self._placed.append(Placed(name, box, area))
        self._owner[stamp.rows, stamp.columns][mask] = len(self._placed)
        self._paint(stamp)
        return True

    def strike_through(self, count: int) -> None:
        """Draw ``count`` thin lines over everything."""
        for _ in range(count):
            self._line(0.6 * max(self._canvas.shape), thickness=0.7)

    def _hides_another(self, stamp: _Stamp, mask: NDArray[np.bool_]) -> bool:
        covered = np.bincount(self._owner[stamp.rows, stamp.columns][mask], minlength=1)
        for index in np.flatnonzero(covered[1:]).tolist():
            visible = int(np.count_nonzero(self._owner == index + 1)) - int(covered[index + 1])
            if visible < MIN_VISIBLE * self._placed[index].area:
                return True
        return False

    def _stamp(self, outline: Outline, radius: float, stretch: float = 1.2) -> _Stamp | None:
        """Return ``outline`` at a random place, angle and aspect ratio; None where no pixel is in the image."""
        height, width = self._owner.shape
        center_x, center_y = self._dice.uniform(0, width), self._dice.uniform(0, height)
        angle = self._dice.uniform(0, 2 * math.pi)
        ratio = self._dice.uniform(1 / stretch, stretch)
        return self._stamp_at(outline, (center_x, center_y), (radius, radius * ratio), angle)

    def _stamp_at(
        self, outline: Outline, center: tuple[float, float], radii: tuple[float, float], angle: float
    ) -> _Stamp | None:
        height, width = self._owner.shape
        reach = math.ceil(REACH * max(radii)) + 1
        left, top = math.floor(center[0]) - reach, math.floor(center[1]) - reach
        x = _count(2 * reach + 1) + np.float32(left + 0.5 - center[0])
        y = (_count(2 * reach + 1) + np.float32(top + 0.5 - center[1]))[:, None]
        # Rounded, because the last digit of sine and cosine differs between platforms.
        cos, sin = np.float32(round(math.cos(angle), 6)), np.float32(round(math.sin(angle), 6))
        u = (x * cos + y * sin) / np.float32(radii[0])
        v = (y * cos - x * sin) / np.float32(radii[1])
        distance = outline(u, v) * np.float32(min(radii))
        rows = slice(max(top, 0), min(top + len(y), height))
        columns = slice(max(left, 0), min(left + len(x), width))
        shown = distance[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        if shown.size == 0:
            return None
        whole = max(int(np.count_nonzero(distance <= 0)), 1)
        return _Stamp(rows, columns, shown, int(np.count_nonzero(shown <= 0)) / whole)

    def _paint(self, stamp: _Stamp) -> None:
        """Fill a shape with a colour unlike its surroundings: plain, shaded, striped or with a border."""
        dice = self._dice
        window = self._canvas[stamp.rows, stamp.columns]
        color = self._contrasting(window)
        fill = np.broadcast_to(color, window.shape)
        style = dice.uniform()
        rows, columns = _count(window.shape[0])[:, None, None], _count(window.shape[1])[None, :, None]
        if style < 0.25:  # shaded from top to bottom
            fill = color * (np.float32(0.7) + np.float32(0.6) * rows / np.float32(len(rows)))
        elif style < 0.45:  # striped
            period = np.float32(max(dice.uniform(0.1, 0.25) * len(rows), 3))
            phase = (rows + columns * np.float32(dice.uniform(-1, 1))) / period
            fill = np.where(phase - np.floor(phase) < np.float32(0.5), color, color * np.float32(0.75))
        elif style < 0.65:  # with a darker or lighter border
            border = np.float32(max(1.5, 0.06 * len(rows)))
            edge = color * np.float32(dice.choice((0.45, 1.5)))
            fill = np.where((stamp.distance > -border)[:, :, None], edge, color)
        self._blend(stamp, fill)

    def _blend(self, stamp: _Stamp, fill: Canvas, opacity: float = 1.0) -> None:
        """Lay ``fill`` over the window with an edge one pixel soft."""
        cover = np.clip(np.float32(0.5) - stamp.distance, 0, 1)[:, :, None] * np.float32(opacity)
        window = self._canvas[stamp.rows, stamp.columns]
        self._canvas[stamp.rows, stamp.columns] = np.clip(window + cover * (fill - window), 0, 255)

    def _contrasting(self, window: Canvas) -> Canvas:
        """Return the one of four random colours that differs most from a few pixels of the window."""
        height, width = window.shape[:2]
        around = window[:: max(height // 3, 1), :: max(width // 3, 1)].reshape(-1, 3)
        best, best_gap = self._dice.color(), -1.0
        for color in (best, self._dice.color(), self._dice.color(), self._dice.color()):
            gap = float(np.abs(around - color).max(axis=1).min())
            if gap > best_gap:
                best, best_gap = color, gap
        return best

    def _line(self, longest: float, thickness: float | None = None) -> None:
        dice = self._dice
        height, width = self._owner.shape
        center = (dice.uniform(0, width), dice.uniform(0, height))
        half_length = dice.uniform(0.2, 0.5) * longest
        half_thickness = dice.uniform(0.5, 2) if thickness is None else thickness
        # A pill is as thick as a fifth of its second radius.
        stamp = self._stamp_at(pill, center, (half_length, 5 * half_thickness), dice.uniform(0, math.pi))
        if stamp is not None:
            self._blend(stamp, np.broadcast_to(dice.color(), (*stamp.distance.shape, 3)), 0.85)

    def _patch_of_noise(self, radius: float) -> None:
        """Draw a patch of coarse noise without a clear outline."""
        dice = self._dice
        stamp = self._stamp(LABELLED["circle"], radius)
        if stamp is None:
            return
        rows, columns = stamp.distance.shape
        noise = _smooth(dice.plane(max(rows // 5, 2), max(columns // 5, 2), 4), rows, columns)
        ragged = stamp.distance + (noise[:, :, 3] - np.float32(0.2)) * np.float32(1.6 * radius)
        softened = ragged * np.float32(0.3)
        self._blend(_Stamp(stamp.rows, stamp.columns, softened, 1.0), noise[:, :, :3] * np.float32(255), 0.8)

    def _background(self, height: int, width: int) -> Canvas:
        """Return a smooth random landscape of colours, with stripes, checks or a second, finer landscape on it."""
        dice = self._dice
        depth = np.float32(25 + 60 * self._clutter)
        base = dice.color() * np.float32(dice.uniform(0.3, 0.9))
        coarse = dice.plane(dice.integer(2, 5), dice.integer(2, 5), 3) - np.float32(0.5)
        canvas = base + _smooth(coarse, height, width) * np.float32(2) * depth
        style = dice.uniform()
        if style > self._clutter:
            return canvas
        strength = depth * np.float32(dice.uniform(0.15, 0.4))
        if style < 0.6 * self._clutter:
            cells = dice.integer(12, 40)
            fine = dice.plane(cells, cells, 1) - np.float32(0.5)
            texture: Canvas = _smooth(fine, height, width) * np.float32(2)
        else:
            period = np.float32(dice.uniform(6, 30))
            slope = np.float32(dice.uniform(-1, 1))
            x, y = _count(width)[None, :, None], _count(height)[:, None, None]
            texture = _square_wave((x + y * slope) / period)
            if dice.chance(0.5):  # checks
                texture = texture * _square_wave((y - x * slope) / period)
        textured: Canvas = canvas + texture * strength
        return textured


def _count(length: int) -> Plane:
    """Return 0, 1, 2, ..."""
    return np.arange(length).astype(np.float32)


def _square_wave(phase: Canvas) -> Canvas:
    wave: Canvas = np.where(phase - np.floor(phase) < np.float32(0.5), np.float32(1), np.float32(-1))
    return wave


def _smooth(grid: Canvas, height: int, width: int) -> Canvas:
    """Return ``grid`` [h, w, C] enlarged to [height, width, C], interpolated linearly."""
    for axis, length in ((0, height), (1, width)):
        position = _count(length) * np.float32((grid.shape[axis] - 1) / max(length - 1, 1))
        lower = np.minimum(position.astype(np.int64), grid.shape[axis] - 2)
        shape = [1, 1, 1]
        shape[axis] = length
        weight = (position - lower.astype(np.float32)).reshape(shape)
        before = np.take(grid, lower, axis=axis)
        grid = before + weight * (np.take(grid, lower + 1, axis=axis) - before)
    return grid
