"""What a page shows of how a run was trained: command, machine, data and settings, as its folder has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_detr.config.source import RUN_SETTINGS
from lora_detr.errors import escape_controls, printable
from lora_detr.records.log_reading import read_object
from lora_detr.records.run_directory import COMMANDS, DATA_REPORT
from lora_detr.regular_files import open_regular

MAX_TEXT = 60_000
"""Characters of a file that are shown."""

_COUNTS = {
    "images": "images",
    "images_without_objects": "images without objects",
    "objects": "objects",
    "categories": "classes",
    "crowd": "crowd regions",
    "clipped": "boxes clipped to their image",
    "zero_size": "boxes without width or height, dropped",
    "outside": "boxes outside their image, dropped",
    "bad_boxes": "malformed boxes, dropped",
    "unreadable": "unreadable images, left out",
    "missing_area": "areas computed from boxes",
    "duplicate_file_names": "file names of several images",
}
"""Name in ``data_report.json`` -> in words. What is 0 in both splits is left out, but for the first three."""


@dataclass(frozen=True)
class Pair:
    """A name and its value, as text."""

    name: str
    value: str


@dataclass(frozen=True)
class DataRow:
    """A count of both splits; empty where there is none."""

    name: str
    train: str
    val: str


@dataclass(frozen=True)
class History:
    """What the folder of a run says.

    Attributes:
        commands: lines of ``command.txt``.
        environment: versions, device and such.
        data: counts of the splits.
        warnings: what looked wrong with the data.
        settings: ``config.yaml``.
        parameters: in training and after ``strip``; empty without a proof of ``strip``.
        stripped: checkpoint that was stripped.
    """

    commands: str
    environment: list[Pair]
    data: list[DataRow]
    warnings: list[str]
    settings: str
    parameters: tuple[int, int] | None
    stripped: str


def read_history(folder: Path) -> History:
    """Read what a run wrote when it began, and what ``strip`` proved; what is missing or damaged is left out.

    Raises:
        OutputError: the system refuses to read a file.
    """
    strip = read_object(folder / "strip_report.json")
    counts = [strip.get(name) for name in ("parameters_before", "parameters_after")]
    before, after = (value if type(value) is int else None for value in counts)
    report = read_object(folder / DATA_REPORT)
    warnings = report.get("warnings")
    return History(
        _text(folder / COMMANDS),
        list(_pairs(read_object(folder / "env.json"))),
        _data_rows(report),
        [printable(line) for line in warnings] if isinstance(warnings, list) else [],
        _text(folder / RUN_SETTINGS),
        (before, after) if before is not None and after is not None else None,
        printable(strip.get("source", "")),
    )


def _pairs(values: Mapping[str, Any]) -> list[Pair]:
    pairs: list[Pair] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += [Pair(printable(inner), printable(own)) for inner, own in value.items()]
        elif value is not None:
            pairs.append(Pair(printable(name).replace("_", " "), printable(value)))
    return pairs


def _data_rows(report: Mapping[str, Any]) -> list[DataRow]:
    train, val = (found if isinstance(found := report.get(name), dict) else {} for name in ("train", "val"))
    rows = []
    for i, (name, words) in enumerate(_COUNTS.items()):
        values = [split.get(name) for split in (train, val)]
        if any(value or (i < 3 and value == 0) for value in values):
            rows.append(DataRow(words, *(f"{value:,}" if type(value) is int else "" for value in values)))
    return rows


def _text(path: Path) -> str:
    """Return a text file without what is no text, cut off where it is too long; empty if there is none."""
    try:
        with open_regular(path) as file:
            text = file.read(4 * MAX_TEXT).decode("utf-8", "backslashreplace")
    except OSError:
        return ""
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n..."
    return escape_controls(cut).strip()
