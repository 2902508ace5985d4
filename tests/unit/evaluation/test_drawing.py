"""Boxes on pictures: where pixels change, where labels go, and what is readable."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lora_detr.evaluation import drawing
from lora_detr.evaluation.drawing import (
    LabelledBox,
    contact_sheet,
    draw_boxes,
    enlargement,
    label_colour,
    side_by_side,
    text_colour,
)

GREY = (120, 120, 120)


def plain(width: int = 640, height: int = 480) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def box(x1: float, y1: float, x2: float, y2: float, **fields: object) -> LabelledBox:
    return LabelledBox(x1, y1, x2, y2, **{"label": 0, "name": "cell", "score": 0.87, **fields})  # type: ignore[arg-type]


def changed(picture: Image.Image, colour: tuple[int, int, int] = GREY) -> NDArray[np.bool_]:
    """Return where a picture differs from a plain one, [H, W]."""
    found: NDArray[np.bool_] = (np.asarray(picture) != np.array(colour)).any(axis=2)
    return found


def shown(picture: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return where a picture has exactly this colour, [H, W]."""
    return ~changed(picture, colour)


def crowd(count: int, width: int, height: int) -> list[LabelledBox]:
    draw = random.Random(1)
    boxes = []
    for i in range(count):
        x, y = draw.uniform(-30, width), draw.uniform(-30, height)
        boxes.append(
            box(x, y, x + draw.uniform(1, 150), y + draw.uniform(1, 150), label=i % 5, score=draw.uniform(0.3, 1))
        )
    return boxes


def placed(boxes: list[LabelledBox], width: int, height: int) -> list[drawing._Label]:
    """Return the labels that ``draw_boxes`` writes."""
    size = (width, height)
    ranked = sorted(boxes, key=lambda item: item.rank, reverse=True)
    font = drawing._font(drawing._font_size(size), [item.name for item in boxes])
    return drawing._labels(ranked, [drawing._outline(item, 1, size) for item in ranked], font, size)


def test_the_outline_is_at_the_edges_and_nowhere_else() -> None:
    image = plain()
    before = image.tobytes()
    picture = draw_boxes(image, [box(200, 150, 400, 350)])
    assert (picture.mode, picture.size) == ("RGB", (640, 480))
    assert image.tobytes() == before
    lines = shown(picture, label_colour(0))
    for edge in (lines[150, 200:400], lines[349, 200:400], lines[150:350, 200], lines[150:350, 399]):
        assert edge.all()
    everything = changed(picture)
    assert not everything[156:344, 206:394].any()
    away = everything.copy()
    away[120:352, 198:402] = False  # the box with its label above it
    assert not away.any()


def test_nothing_to_draw_changes_nothing() -> None:
    assert not changed(draw_boxes(plain(), [])).any()


def test_a_label_stands_above_its_box_and_holds_text() -> None:
    picture = draw_boxes(plain(), [box(200, 150, 400, 350)])
    label = placed([box(200, 150, 400, 350)], 640, 480)[0]
    assert label.text == "cell 0.87"
    assert (label.place.left, label.place.bottom) == (200, 150)
    inside = np.asarray(picture)[label.place.top : label.place.bottom, label.place.left : label.place.right]
    dark = (inside < 60).all(axis=2)
    assert dark.any(axis=0).mean() > 0.4  # columns that a letter crosses
    assert (inside == np.array(label_colour(0))).all(axis=2).mean() > 0.4


def test_ground_truth_has_no_score() -> None:
    assert placed([box(200, 150, 400, 350, score=None)], 640, 480)[0].text == "cell"


@pytest.mark.parametrize("size", [(640, 480), (400, 30), (450, 120)])
def test_every_label_is_inside_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    corners = [(-50, -50, 20, 10), (width - 10, -5, width + 90, 20), (-9, height - 8, 9, height + 70)]
    corners += [(width - 5, height - 5, width, height), (width + 50, height + 50, width + 60, height + 60)]
    boxes = [box(*corner) for corner in corners] + crowd(40, width, height)
    labels = placed(boxes, width, height)
    assert len(labels) == len(boxes)
    for label in labels:
        assert 0 <= label.place.left < label.place.right <= width
        assert 0 <= label.place.top < label.place.bottom <= height
    assert draw_boxes(plain(width, height), boxes).size == size


def test_labels_avoid_each_other_where_there_is_room() -> None:
    # Three boxes almost on top of each other, as a detector without suppression gives them.
    labels = placed([box(200 + i, 150 + i, 400 + i, 350 + i, score=0.9 - i / 10) for i in range(3)], 640, 480)
    for i, label in enumerate(labels):
        assert all(label.place.overlap(other.place) == 0 for other in labels[:i])


def test_a_label_does_not_hide_a_small_object() -> None:
    small = box(205, 132, 217, 144, label=1, score=0.9)
    large = box(200, 150, 400, 350, score=0.8)
    picture = draw_boxes(plain(), [large, small])
    lines = shown(picture, label_colour(1))
    assert lines[132, 205:217].all()
    assert lines[132:144, 205].all()


@pytest.mark.parametrize("order", [1, -1])
def test_the_best_score_is_on_top_whatever_the_order(order: int) -> None:
    pair = [box(100, 100, 300, 300, label=0, score=0.9), box(100, 100, 300, 300, label=1, score=0.5)]
    picture = draw_boxes(plain(), pair[::order])
    assert shown(picture, label_colour(0))[299, 150:250].all()
    assert not shown(picture, label_colour(1))[299, 150:250].any()


def test_of_ground_truth_the_smaller_box_is_on_top() -> None:
    outer = box(100, 100, 300, 300, label=0, score=None)
    inner = box(100, 100, 200, 200, label=1, score=None)
    picture = draw_boxes(plain(), [inner, outer])
    assert shown(picture, label_colour(1))[150:199, 100].all()


def test_an_outline_shows_on_a_background_of_its_own_colour() -> None:
    for label in range(12):
        colour = label_colour(label)
        picture = draw_boxes(Image.new("RGB", (640, 480), colour), [box(200, 150, 400, 350, label=label)])
        difference = np.abs(np.asarray(picture)[250, 198:204].astype(int) - np.array(colour)).sum(axis=1)
        assert (difference > 80).tolist() == [False, True, False, False, True, False], (
            label
        )  # on both sides of the line


def test_classes_have_different_colours() -> None:
    colours = [label_colour(label) for label in range(91)]
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    for count, least in ((20, 75), (91, 10)):  # few classes are told apart by colour, many by their names too
        for i, first in enumerate(colours[:count]):
            for second in colours[:i]:
                assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) >= least


def luminance(colour: tuple[int, int, int]) -> float:
    linear = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_on_every_colour() -> None:
    for label in range(91):
        background = label_colour(label)
        high, low = sorted((luminance(background), luminance(text_colour(background))), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4, label  # WCAG asks for 3 of large and 4.5 of small text
    assert text_colour((255, 255, 0)) != text_colour((0, 0, 120))


@pytest.mark.parametrize(
    ("size", "factor"), [((640, 480), 1), ((400, 10), 1), ((399, 399), 2), ((160, 120), 3), ((1, 1), 400)]
)
def test_small_pictures_are_enlarged(size: tuple[int, int], factor: int) -> None:
    assert enlargement(*size) == factor
    picture = draw_boxes(plain(*size), [box(0, 0, *size)])
    assert picture.size == (size[0] * factor, size[1] * factor)
    assert shown(picture, label_colour(0))[:, -1].all()  # the last column is the right edge, not the one beyond it


def test_coordinates_are_enlarged_with_the_picture() -> None:
    picture = draw_boxes(plain(100, 100), [box(50, 40, 90, 80)])
    lines = shown(picture, label_colour(0))
    assert lines[160, 200:360].all()
    assert lines[319, 200:360].all()
    assert not changed(picture)[330:].any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_can_be_drawn_on(mode: str) -> None:
    picture = draw_boxes(plain().convert(mode), [box(200, 150, 400, 350)])
    assert picture.mode == "RGB"
    assert shown(picture, label_colour(0))[349, 250:350].all()


def test_a_long_name_is_cut_and_the_score_kept() -> None:
    name = "a name that is much longer than any picture is wide " * 3
    label = placed([box(10, 100, 60, 150, name=name)], 640, 480)[0]
    assert label.text.startswith("a name that is")
    assert label.text.endswith("... 0.87")
    assert label.place.right <= 640


def test_where_no_label_fits_the_box_is_drawn_without() -> None:
    assert placed([box(0, 0, 8, 8)], 400, 9) == []
    assert placed([box(0, 0, 8, 400)], 9, 400) == []
    assert shown(draw_boxes(plain(400, 9), [box(0, 0, 8, 9)]), label_colour(0))[:, 0].all()


@pytest.mark.parametrize("name", ["größe", "Ёлка", "κύτταρο"])
def test_names_of_other_alphabets_are_written(name: str) -> None:
    assert placed([box(200, 150, 400, 350, name=name)], 640, 480)[0].text == f"{name} 0.87"


def test_a_name_that_no_font_has_becomes_the_number_of_the_class() -> None:
    assert placed([box(200, 150, 400, 350, name="细胞", label=3)], 640, 480)[0].text == "class 3 0.87"


def test_two_panels_show_truth_and_prediction() -> None:
    picture = side_by_side(plain(), [box(200, 150, 400, 350, score=None)], [box(200, 150, 400, 350, label=1)])
    assert picture.width > 2 * 640
    assert picture.height > 480
    left, right = (picture.crop((x, 0, x + picture.width // 2, picture.height)) for x in (0, picture.width // 2))
    for panel, drawn, absent in ((left, 0, 1), (right, 1, 0)):
        assert shown(panel, label_colour(drawn)).sum() > 800
        assert not shown(panel, label_colour(absent)).any()
        title = np.asarray(panel)[: picture.height - 480 - 10].max(axis=2)
        assert (title < 60).sum() > 100  # letters on white


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 3, 1), (3, 2, 2), (6, 3, 2)])
def test_a_contact_sheet_holds_every_picture(count: int, columns: int, rows: int) -> None:
    colours = [label_colour(i) for i in range(count)]
    sheet = contact_sheet([Image.new("RGB", (200, 100 + i), c) for i, c in enumerate(colours)], columns=columns)
    for i, colour in enumerate(colours):
        assert shown(sheet, colour).sum() == 200 * (100 + i)
    assert 200 * min(columns, count) < sheet.width < 220 * min(columns, count)
    assert 100 * rows < sheet.height < 120 * rows


def test_a_contact_sheet_keeps_to_its_width() -> None:
    pictures = [Image.new("RGB", (800, 600), label_colour(i)) for i in range(4)]
    sheet = contact_sheet(pictures, columns=2, max_width=700)
    assert 600 < sheet.width <= 700
    for i in range(4):
        rows, columns = np.nonzero(shown(sheet, label_colour(i)))
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert width / height == pytest.approx(4 / 3, rel=0.02)


def test_a_contact_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="column"):
        contact_sheet([plain()], columns=0)
