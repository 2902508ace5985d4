"""Data that a run refuses: its problems are kept, since the message shows only the first of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from lora_detr.atomic_files import write_file
from lora_detr.data.coco.report import AnnotationError
from lora_detr.errors import OutputError
from lora_detr.training.run_directory import DATA_REPORT


@contextlib.contextmanager
def problems_kept(directory: Path, wanted: bool) -> Iterator[None]:
    """Write all problems of data that is refused within to ``data_report.json``, and say so in the message.

    Args:
        directory: of the run that was to start.
        wanted: whether this process writes; else nothing changes.

    Raises:
        AnnotationError: the data is refused, whether or not the file could be written.
    """
    try:
        yield
    except AnnotationError as error:
        if not wanted:
            raise
        path = directory / DATA_REPORT
        text = json.dumps({"problems": error.to_json()}, indent=1) + "\n"
        try:
            write_file(path, text.encode())
        except OutputError:
            raise error from None
        raise error.listed_in(path) from None
