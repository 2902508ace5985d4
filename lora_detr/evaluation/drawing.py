"""Draw boxes with their names on photos, so that they can be read on any background and at any size."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_detr.errors import printable

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

READABLE_SIDE = 400
"""Pictures whose longer side is shorter than this are enlarged before anything is drawn."""

# The colours of Okabe and Ito, which colour-blind people tell apart, ordered so that the first ones differ most.
_FIRST_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
)
_LIGHTNESS = (0.5, 0.75, 0.35)
_GOLDEN_RATIO = (sqrt(5) - 1) / 2

_DARK: Colour = (16, 16, 16)
_LIGHT: Colour = (255, 255, 255)
_HALO_OPACITY = 110  # of 255; a thin line on both sides of a box shows it on a background of its own colour
_BACKGROUND: Colour = (255, 255, 255)
_NO_SUCH_CHARACTER = "\U0010fffd"


@dataclass(frozen=True)
class LabelledBox:
    """A box to draw.

    Attributes:
        x1: left, in pixels of the image; likewise the next three.
        y1: top.
        x2: right.
        y2: bottom.
        label: 0..K-1, decides the colour.
        name: of the class.
        score: in [0, 1]; None for ground truth.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: int
    name: str
    score: float | None = None

    @property
    def rank(self) -> float:
        """What decides which of two boxes is on top: the score, else the smaller box."""
        return -(self.x2 - self.x1) * (self.y2 - self.y1) if self.score is None else self.score


@dataclass(frozen=True)
class _Rectangle:
    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Pixels inside."""
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, other: _Rectangle) -> int:
        """Return the common area in pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


@dataclass(frozen=True)
class _Label:
    place: _Rectangle
    text: str
    colour: Colour


def label_colour(label: int) -> Colour:
    """Return the colour of a class, red, green and blue in 0..255.

    It depends on the label alone, so a class looks the same in every picture.
    """
    if label < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[label]
    number = label - len(_FIRST_COLOURS)
    hue = (0.9 + number * _GOLDEN_RATIO) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[number % len(_LIGHTNESS)], 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Return dark or light, whichever has the higher contrast with the background (relative luminance of WCAG 2)."""
    shares = [value / 255 for value in background]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # From this luminance on, black has more contrast than white.
    return _DARK if luminance > 0.179 else _LIGHT


def enlargement(width: int, height: int) -> int:
    """Return by which integer factor a picture of this size is enlarged before drawing."""
    return ceil(READABLE_SIDE / max(width, height, 1))


def draw_boxes(image: Image.Image, boxes: Iterable[LabelledBox]) -> Image.Image:
    """Return a copy of a picture with boxes, names and scores on it.

    A small picture is enlarged first (see ``enlargement``). Labels stay inside the picture and avoid each other where
    there is room. The best score is drawn last, on top of the others.

    Args:
        image: any mode.
        boxes: in pixels of ``image``; parts outside it are cut off. May be empty.

    Returns:
        RGB, of the size of ``image`` times the enlargement.
    """
    factor = enlargement(*image.size)
    size = (image.width * factor, image.height * factor)
    picture = image.convert("RGB")
    picture = picture.resize(size, Image.Resampling.BICUBIC) if factor > 1 else picture.copy()
    ranked = sorted(boxes, key=lambda box: box.rank, reverse=True)
    outlines = [_outline(box, factor, size) for box in ranked]
    font = _font(_font_size(size), [printable(box.name) for box in ranked])
    labels = _labels(ranked, outlines, font, size)
    draw = ImageDraw.Draw(picture, "RGBA")  # this mode blends what is not opaque
    line = max(2, round(sqrt(max(size)) / 12))
    for box, outline in reversed(list(zip(ranked, outlines, strict=True))):
        _draw_outline(draw, outline, label_colour(box.label), line)
    for label in reversed(labels):
        _draw_label(draw, label, font)
    return picture


def side_by_side(image: Image.Image, truth: Iterable[LabelledBox], predicted: Iterable[LabelledBox]) -> Image.Image:
    """Return two pictures of one image beside each other: the ground truth, and the prediction.

    Args:
        image: any mode.
        truth: boxes of the annotation file; may be empty.
        predicted: boxes of a detector; may be empty.
    """
    panels = [
        _titled("ground truth", draw_boxes(image, truth)),
        _titled("prediction", draw_boxes(image, predicted)),
    ]
    return contact_sheet(panels, columns=2)


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int, max_width: int = 2400) -> Image.Image:
    """Return pictures in a grid, row by row, each in the middle of a cell of equal size.

    Args:
        pictures: at least one.
        columns: cells of a row, at least 1.
        max_width: of the sheet in pixels; pictures are scaled down together to keep to it.

    Raises:
        ValueError: there is no picture, or ``columns`` is below 1.
    """
    if not pictures or columns < 1:
        raise ValueError(f"expected at least one picture and one column, found {len(pictures)} and {columns}")
    columns = min(columns, len(pictures))
    gap = max(4, max(picture.width for picture in pictures) // 60)
    cell_width = max(picture.width for picture in pictures)
    scale = min(1.0, (max_width - (columns + 1) * gap) / (columns * cell_width))
    if scale < 1:
        sizes = [(max(1, int(p.width * scale)), max(1, int(p.height * scale))) for p in pictures]
        pictures = [p.resize(size, Image.Resampling.LANCZOS) for p, size in zip(pictures, sizes, strict=True)]
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), _BACKGROUND)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left = gap + column * (width + gap) + (width - picture.width) // 2
        top = gap + row * (height + gap) + (height - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet


def fitted_text(text: str, size: int, room: int) -> tuple[Font, str]:
    """Return a font of some size that has the characters of a text, and the text, cut with dots to ``room`` pixels."""
    font = _font(size, [text])
    if font.getlength(text) <= room:
        return font, text
    ends = (text[:end] + "..." for end in range(len(text) - 1, 0, -1))
    return font, next((each for each in ends if font.getlength(each) <= room), "")


def _titled(title: str, picture: Image.Image) -> Image.Image:
    font = _font(round(1.25 * _font_size(picture.size)), [title])
    strip = _text_height(font) + 4
    panel = Image.new("RGB", (picture.width, picture.height + strip), _BACKGROUND)
    ImageDraw.Draw(panel).text((0, strip / 2), title, fill=_DARK, font=font, anchor="lm")
    panel.paste(picture, (0, strip))
    return panel


def _font_size(size: tuple[int, int]) -> int:
    """Return the height of letters: it grows with the picture, but more slowly, since large pictures show more."""
    return max(12, round(0.55 * sqrt(max(size))))


def _outline(box: LabelledBox, factor: int, size: tuple[int, int]) -> _Rectangle:
    """Return the box in whole pixels of the enlarged picture, inside it; right and bottom are the last pixels."""

    def inside(value: float, side: int) -> int:
        return min(max(round(value * factor), 0), side)

    left, top = inside(box.x1, size[0] - 1), inside(box.y1, size[1] - 1)
    right, bottom = inside(box.x2, size[0]) - 1, inside(box.y2, size[1]) - 1
    return _Rectangle(left, top, max(left, right), max(top, bottom))


def _draw_outline(draw: ImageDraw.ImageDraw, place: _Rectangle, colour: Colour, line: int) -> None:
    halo = (*text_colour(colour), _HALO_OPACITY)
    draw.rectangle((place.left - 1, place.top - 1, place.right + 1, place.bottom + 1), outline=halo, width=1)
    draw.rectangle((place.left, place.top, place.right, place.bottom), outline=colour, width=line)
    inner = (place.left + line, place.top + line, place.right - line, place.bottom - line)
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        draw.rectangle(inner, outline=halo, width=1)


def _draw_label(draw: ImageDraw.ImageDraw, label: _Label, font: Font) -> None:
    place, text = label.place, text_colour(label.colour)
    corners = (place.left, place.top, place.right - 1, place.bottom - 1)
    draw.rectangle(corners, fill=label.colour)
    draw.rectangle(corners, outline=(*text, _HALO_OPACITY), width=1)  # parts it from a neighbour of the same class
    draw.text(
        (place.left + _padding(font), (place.top + place.bottom) / 2), label.text, fill=text, font=font, anchor="lm"
    )


def _labels(
    ranked: Sequence[LabelledBox], outlines: Sequence[_Rectangle], font: Font, size: tuple[int, int]
) -> list[_Label]:
    """Return the labels in the order of the boxes; the best chooses its place first."""
    labels: list[_Label] = []
    for box, outline in zip(ranked, outlines, strict=True):
        text = _text(box, font, size[0])
        width, height = ceil(font.getlength(text)) + 2 * _padding(font), _text_height(font)
        if not text or height > size[1]:
            continue
        places = _places(outline, width, height, size)
        # A label hides what is below it. Other labels are to stay legible first of all, then small objects visible.
        small = [other for other in outlines if other.area < 4 * width * height]
        hidden = [
            4 * sum(place.overlap(label.place) for label in labels) + sum(place.overlap(other) for other in small)
            for place in places
        ]
        place = places[hidden.index(min(hidden))]
        labels.append(_Label(place, text, label_colour(box.label)))
    return labels


def _places(outline: _Rectangle, width: int, height: int, size: tuple[int, int]) -> list[_Rectangle]:
    """Return where a label may go, the most usual place first; all inside the picture."""
    above, inside_top = outline.top - height, outline.top
    below, inside_bottom = outline.bottom + 1, outline.bottom + 1 - height
    left, right = outline.left, outline.right + 1 - width
    corners = [
        (left, above),
        (left, inside_top),
        (right, above),
        (left, below),
        (right, inside_top),
        (left, inside_bottom),
        (right, below),
        (right, inside_bottom),
    ]
    places = []
    for x, y in corners:
        x, y = min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)
        places.append(_Rectangle(x, y, x + width, y + height))
    return places


def _text(box: LabelledBox, font: Font, room: int) -> str:
    """Return name and score; the name is cut with dots to fit ``room`` pixels, and the whole is empty if it cannot be.

    A name that the font cannot write becomes the number of the class, which says more than a row of empty squares.
    """
    name = printable(box.name)
    if not _covers(font, name):
        name = f"class {box.label}"
    score = "" if box.score is None else f" {box.score:.2f}"
    room -= 2 * _padding(font)
    if font.getlength(name + score) <= room:
        return name + score
    for end in range(min(len(name) - 1, max(room, 0)), 0, -1):  # a letter is wider than a pixel
        if font.getlength(f"{name[:end]}...{score}") <= room:
            return f"{name[:end]}...{score}"
    return ""


def _padding(font: Font) -> int:
    return max(2, _text_height(font) // 6)


def _text_height(font: Font) -> int:
    """Return the height of a line, the same for all texts."""
    top, bottom = font.getbbox("Ápg")[1::2]
    return ceil(bottom - top) + 2


def _font(size: int, names: Iterable[str]) -> Font:
    """Return the font of Pillow, which is narrow, or DejaVu Sans, which has more characters, if a name needs them."""
    plain, wide = _plain_font(size), _wide_font(size)
    return plain if wide is None or all(_covers(plain, name) for name in names) else wide


@cache
def _plain_font(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)
    return font


@cache
def _wide_font(size: int) -> Font | None:
    """Return the font that comes with matplotlib, found without importing that, which takes long."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size) if path.is_file() else None


@cache
def _covers(font: Font, text: str) -> bool:
    """Return whether no character of the text is drawn as the sign for a missing one."""
    missing = bytes(font.getmask(_NO_SUCH_CHARACTER))
    return all(bytes(font.getmask(character)) != missing for character in set(text))
