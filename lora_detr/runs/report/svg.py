"""Figures as SVG within a page: they take colours and font of the page, so they are legible in the dark and in print.

Matplotlib is slow to import, so callers import this module where they draw.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from lora_detr.records.diagrams import COLOURS, GREY, PALE, STYLE, in_style

SIZE = (4.4, 3.1)
"""Inches of a panel: letters of 9 points are legible where the page is as narrow as a phone."""

_NAMES = ("blue", "orange", "green", "purple", "amber", "sky", "ink")
_VARIABLES = {colour.lower(): f"var(--{name})" for colour, name in zip(COLOURS, _NAMES, strict=True)}
_VARIABLES |= {"#ffffff": "var(--paper)", GREY: "var(--muted)", PALE: "var(--line)"}
_VARIABLES |= {str(STYLE["grid.color"]): "var(--line)", "#808080": "var(--muted)"}

# Text stays text, in fonts that readers have; a dollar sign in a name begins no formula.
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loradetr",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}


@contextlib.contextmanager
def panel_style() -> Iterator[None]:
    """Draw within as pages show it."""
    with in_style(), matplotlib.rc_context(_SETTINGS):
        yield


def inline_svg(figure: Figure, prefix: str, description: str) -> Markup:
    """Return a figure that was drawn in ``panel_style`` as an element of HTML.

    Args:
        figure: without pictures in it.
        prefix: of all ids within, different for each figure of a page.
        description: read to those who do not see it.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # What describes the file, and a style sheet, which would be one of the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    (box,) = re.findall(r'viewBox="([^"]+)"', text)
    text = text[text.index(">") + 1 : text.rindex("</svg>")].replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'style="[^"]*"', lambda found: re.sub("#[0-9a-f]{6}", _variable, found[0]), text)
    text = re.sub(r' d="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"\n\s*", "\n", text)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box, description)
    return head + Markup(text) + Markup("</svg>")


def _variable(found: re.Match[str]) -> str:
    return _VARIABLES.get(found[0], found[0])
