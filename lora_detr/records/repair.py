"""Prepare the files of a run for more: cut them back to a step, and leave nothing in them that would stop the run.

A run whose checkpoint is whole must resume, whatever a power failure has left in its logs. What a reader cannot make
sense of is left out; where that is more than half a line at the end, the file is first moved aside as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_detr.atomic_files import set_aside, write_file
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.errors import ConfigError, OutputError
from lora_detr.records.run_directory import COMMANDS, RunDirectory
from lora_detr.records.tolerant import Dropped, Meaning, Rows, json_object, kept_lines, object_with_step

T = TypeVar("T")
Report = Callable[[str], object]
"""Takes a line for the user."""


def repair(directory: RunDirectory, *, step: int, report: Report) -> None:
    """Remove what was logged after a step, so that a resumed run does not log it twice, and what is damaged.

    Args:
        directory: of a run that no other process trains in.
        step: the last one to stay.
        report: gets a line on what was left out or moved aside.

    Raises:
        OutputError: a file cannot be rewritten or moved.
    """
    for path in directory.written:
        if (path.exists() or path.is_symlink()) and not path.is_file():
            _move(path, "not a file", report)
    for log in directory.logs:
        _cut(log, object_with_step, lambda record: record["step"] <= step, report)
    _cut(directory.results, Rows(), lambda row: row.get("step", 0) <= step, report)
    _cut(directory.changes, json_object, lambda record: True, report)
    _cut(directory.path / COMMANDS, lambda line: line, lambda line: True, report)
    settings = directory.path / RUN_SETTINGS
    try:
        if settings.exists():
            read_yaml(settings)
    except ConfigError as error:
        _move(settings, f"damaged: {error.message}; it is written again", report)


def _cut(path: Path, meaning: Meaning[T], stays: Callable[[T], bool], report: Report) -> None:
    """Rewrite a file with those of its lines that make sense and stay."""
    dropped = Dropped(path)
    try:
        kept = [line for line, found in kept_lines(path, meaning, dropped) if stays(found)]
        size = path.stat().st_size if path.exists() else 0
    except OutputError as error:
        _move(path, error.message.removeprefix(f"{path}: "), report)
        return
    content = b"".join(kept)
    if dropped and not dropped.tail_only:
        _move(path, str(dropped).removeprefix(f"{path}: "), report)
    elif dropped:
        report(f"note: {dropped}")
    if path.is_symlink() or (len(content) != size if path.exists() else content):
        write_file(path, content)  # in place of a link, too, which no log may be


def _move(path: Path, reason: str, report: Report) -> None:
    aside = set_aside(path)
    report(f"note: {path}: {reason}; what it was is kept as {aside.name}")
