"""What was read of many small files, kept in one, so that the next start need not open each of them again.

A split is found again by names, sizes, times and numbers (inode) of all files that it depends on, and by all settings
it was read with. A file that was changed in any way has another time, so what is kept is never older than the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
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

VERSION = 1
"""Raised whenever the same files would be read as something else, or are kept in another way."""

KEPT = 32
"""Files in the folder; the oldest are removed."""

_MAX_BYTES = 4_000_000_000
_TABLE = [field.name for field in fields(ImageTable) if field.name != "folder"]
_TRUTH = [field.name for field in fields(GroundTruth)]

logger = logging.getLogger(__name__)


def folder() -> Path:
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
    path = folder() / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, LoraDetrError):
        # Fails where it is absent or damaged.
        split = _restored(read_regular(path, _MAX_BYTES), source)
        os.utime(path)  # it was of use
        return split
    split = load()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _content(split))
        for old in sorted(path.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, LoraDetrError) as error:
        logger.info("%s: not kept for the next start: %s", source.name, error)
    return split


def _key(files: Iterable[str], settings: object) -> str:
    digest = hashlib.sha256(
        repr((VERSION, installed_version("lora-detr"), settings)).encode("utf-8", "surrogateescape")
    )
    for name in files:
        digest.update(name.encode("utf-8", "surrogateescape"))
        try:
            found = os.stat(name)
        except (OSError, ValueError):
            digest.update(b"\0absent\0")
            continue
        facts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(b"\0%d %d %d %d\0" % facts)
    return digest.hexdigest()


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
    report["per_category"] = tuple(CategoryCount(**each) for each in report["per_category"])
    return CocoSplit(table, CategoryMap.from_json(facts["categories"]), truth, DataReport(**report), source.path)
