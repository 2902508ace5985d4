"""Names as they are printed, and as JSON has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lora_detr.data.coco.report import Problem
from lora_detr.errors import escape_controls, printable
from lora_detr.evaluation.drawing import LabelledBox, draw_boxes
from lora_detr.json_value import json_text

NAMES = {
    "plain é 名.png": "plain é 名.png",
    "a\nb\tc\rd": "a\\nb\\tc\\rd",
    "\x1b[31m\x7f\x9b": "\\x1b[31m\\x7f\\x9b",
    "\u202a\u202e\u2066\u2069\u200e\u200f": "\\u202a\\u202e\\u2066\\u2069\\u200e\\u200f",
    "p\udce9": "p\\xe9",
    "\udcc3\udcbc": "ü",  # of a system that expects ASCII
    "\udce2\udc80\udcae": "\\u202e",
    "\ud800": "\\ud800",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=ascii)
def test_a_name_is_one_line_without_controls(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(shown) == shown
    assert printable(Path(name)) == shown
    assert Problem("D17", name).text == shown


def test_a_text_keeps_its_lines() -> None:
    assert escape_controls("a\n\tb\x1b") == "a\n\tb\\x1b"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("plain é 😀", "plain é 😀"),
        ("p\udce9\n", "p\\xe9\n"),
        ("\udcc3\udcbc", "ü"),
        ("\ud800", "\\ud800"),
        ("\udc12", "\\udc12"),
        ("\\ud800", "\\ud800"),
        ("\\\udce9", "\\\\xe9"),
        ("\\ud83d\\ude00", "\\ud83d\\ude00"),
    ],
    ids=ascii,
)
def test_json_holds_no_half_of_a_character(value: str, read: str) -> None:
    found = json.loads(json_text({value: [value]}, indent=1))
    assert found == {read: [read]}
    json.dumps(found, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", [*NAMES, "\0", "", "long" * 500], ids=ascii)
def test_any_name_of_a_class_can_be_drawn(name: str) -> None:
    picture = draw_boxes(Image.new("RGB", (90, 60)), [LabelledBox(10, 20, 50, 50, 0, name, 0.5)])
    assert picture.size == (450, 300)
