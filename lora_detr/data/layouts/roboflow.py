"""COCO exports of Roboflow: an annotation file in the folder of each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_detr.data.coco.checks import Row
from lora_detr.data.coco.source import DataPaths, JsonSource, ReadAs, Report, Take
from lora_detr.data.layouts.layout import VALIDATION, Layout, not_found, split_folder
from lora_detr.errors import counted, listed

FILE = "_annotations.coco.json"


def recognises(data: Path) -> bool:
    """Return whether the training split lies where Roboflow has it."""
    return (data / "train" / FILE).is_file()


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the splits.

    Raises:
        DataError: there is no training split.
    """
    if not recognises(data):
        raise not_found(data, ROBOFLOW.expects)
    val = split_folder(data, VALIDATION, FILE)
    return DataPaths(_Export(data / "train"), _Export(val) if val else None, "" if val else f"valid/{FILE}")


class _Export(JsonSource):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder / FILE, folder, f"{folder.name}/{FILE}", reads_sizes=True)

    def read(self, take: Take, report: Report, *, allow_outside: bool) -> Row:
        """Read the file, and note categories without an object: exports have one that is called like the project."""
        used: set[int] = set()

        def take_and_note(rows: list[Any]) -> None:
            categories = [row.get("category_id") for row in rows if type(row) is dict]
            used.update(category for category in categories if type(category) is int)
            take(rows)

        root = super().read(take_and_note, report, allow_outside=allow_outside)
        rows = [row for row in root["categories"] if type(row) is dict and type(row.get("id")) is int]
        unused = [row.get("name") for row in rows if row["id"] not in used]
        self.notes.clear()
        if unused and self.path.parent.name == "train":
            count = counted(len(unused), "category", "categories")
            self.notes.append(f"{count} without an annotation: classes all the same ({listed(unused)})")
        return root


ROBOFLOW = Layout("roboflow", f"train/{FILE}", recognises, splits)
