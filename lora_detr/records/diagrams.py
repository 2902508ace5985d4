"""How diagrams look: colours, style, and the file they become.

Matplotlib is slow to import, so callers import this module where they draw.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import matplotlib.style
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's colours, which most colour-blind people can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
GREY, PALE = "#666666", "#d4d4d4"


def curve_style(index: int) -> tuple[str, str]:
    """Return colour and dashes of the curve of that number, all different for the first few dozen."""
    dashes = ("-", "--", ":", "-.")
    return COLOURS[index % len(COLOURS)], dashes[index // len(COLOURS) % len(dashes)]


STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "legend.edgecolor": "none",
}


@contextlib.contextmanager
def in_style() -> Iterator[None]:
    """Draw the same on every machine, and leave the settings of the process as they were."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # in the name of a folder
        yield


def encoded(figure: Figure) -> bytes:
    """Return a figure as PNG with a palette of the few colours of a diagram, at a third of the size."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    few = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)
    few.save(small, "PNG", optimize=True)
    return small.getvalue()
