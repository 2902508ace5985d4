"""What was read of many small files, kept in one, so that the next start need not open each of them again.

A split is found again by names, sizes and times of change of all files that it depends on, and by all settings it was
read with. Whatever changes a file sets that time (not the one of ``ls``), which no program can set back; times are only
compared with themselves, so it does not matter what the clock was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from array import array
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lora_detr.atomic_files import write_file
from lora_detr.config.installed import installed_version
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.checks import OnBadData
from lora_detr.data.coco.records import ImageTable
from lora_detr.data.coco.report import CategoryCount, DataReport
from lora_detr.data.coco.source import Source
from lora_detr.data.coco.split import CocoSplit, GroundTruth, load_split
from lora_detr.errors import LoraDetrError
from lora_detr.regular_files import read_regular

VERSION = 2
"""Raised whenever the same files would be read as something else, or are kept in another way."""

KEPT = 32
"""Files in the folder; of more, any are removed."""

_MAX_BYTES = 4_000_000_000
_TABLE = [field.name for field in fields(ImageTable) if field.name != "folder"]
_TRUTH = [field.name for field in fields(GroundTruth)]

_name = attrgetter("name")

logger = logging.getLogger(__name__)


def kept_in() -> Path:
    """Return where splits are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_detr" / "splits"


def load_kept(source: Source, *, strict: bool, on_bad_data: OnBadData, allow_outside: bool) -> CocoSplit:
    """Read a split as ``load_split`` does, or take it from an earlier time if none of its files has changed since."""

    def load() -> CocoSplit:
        return load_split(source, strict=strict, on_bad_data=on_bad_data, allow_outside=allow_outside)

    files = source.files()
    if files is None:
        return load()
    key = _key(files, (source.name, str(source.images), source.settings(), strict, on_bad_data, allow_outside))
    path = kept_in() / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, LoraDetrError):
        # Fails where it is absent or damaged.
        return _restored(read_regular(path, _MAX_BYTES), source)
    split = load()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _content(split))
        for other in sorted(set(path.parent.glob("*.npz")) - {path})[KEPT - 1 :]:
            other.unlink(missing_ok=True)
    except (OSError, LoraDetrError) as error:
        logger.info("%s: not kept for the next start: %s", source.name, error)
    return split


def _key(files: Iterable[str], settings: object) -> str:
    digest = hashlib.sha256(
        repr((VERSION, installed_version("lora-detr"), settings)).encode("utf-8", "surrogateescape")
    )
    seen: set[tuple[int, int]] = set()
    for path in files:
        _add(digest, path, seen)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: str, seen: set[tuple[int, int]]) -> None:
    """Add the facts of a file, or of a folder and all that it holds, each folder once."""
    names, facts, folders = [path], array("q"), []

    def stat(entry: str | os.DirEntry[str]) -> os.stat_result | None:
        try:
            found = os.stat(entry) if isinstance(entry, str) else entry.stat()
        except (OSError, ValueError):  # absent, or a link that leads nowhere
            names.append("absent")
            return None
        facts.extend((found.st_size, found.st_ctime_ns, found.st_ino))
        return found

    found = stat(path)
    if found is not None and S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
        seen.add((found.st_dev, found.st_ino))
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in sorted(entries, key=_name):
                names.append(entry.name)
                inner = stat(entry)
                if inner is not None and S_ISDIR(inner.st_mode):
                    folders.append(entry.path)
    digest.update("\0".join((*names, "")).encode("utf-8", "surrogateescape"))
    digest.update(facts)
    for folder in folders:
        _add(digest, folder, seen)


def _content(split: CocoSplit) -> bytes:
    facts = {"categories": split.categories.to_json(), "report": split.report.to_json()}
    arrays = {name: getattr(split.records, name) for name in _TABLE}
    arrays |= {f"truth_{name}": getattr(split.ground_truth, name) for name in _TRUTH}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _restored(content: bytes, source: Source) -> CocoSplit:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        table = ImageTable(source.images, **{name: arrays[name] for name in _TABLE})
        truth = GroundTruth(**{name: arrays[f"truth_{name}"] for name in _TRUTH})
    report: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in facts["report"].items()
    }
    report["places"] = {key: tuple(value) for key, value in report["places"].items()}
    report["per_category"] = tuple(CategoryCount(**each) for each in report["per_category"])
    return CocoSplit(table, CategoryMap.from_json(facts["categories"]), truth, DataReport(**report), source.path)
