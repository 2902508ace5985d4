"""YOLO as Ultralytics, Roboflow and CVAT write it: a YAML file, and a text file of labels for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_detr.config.yaml_subset import read_yaml
from lora_detr.data.coco.layout import MAX_YAML_BYTES, PATH_KEYS, top_keys
from lora_detr.data.coco.source import DataPaths, ReadAs
from lora_detr.data.layouts.layout import Layout, not_found
from lora_detr.data.layouts.yolo_labels import Listed, YoloSource
from lora_detr.errors import ConfigError, DataError
from lora_detr.json_value import JSON
from lora_detr.regular_files import read_regular

FILES = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of the YAML file in a folder."""

MAX_LIST_BYTES = 1_000_000_000
_VAL_KEYS = ("val", "validation")


def recognises(data: Path) -> bool:
    """Return whether there is a YAML file with ``train`` and with names of classes, or their number."""
    path = _yaml_of(data)
    keys = top_keys(path) if path.is_file() else set()
    return "train" in keys and bool(keys & {"names", "nc"}) and PATH_KEYS[0] not in keys


def _yaml_of(data: Path) -> Path:
    """Return the YAML file that a folder holds, or is."""
    return next((data / name for name in FILES if (data / name).is_file()), data) if data.is_dir() else data


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Read the YAML file and find the splits.

    Raises:
        ConfigError: the YAML file is malformed.
        DataError: there is none, or there is no training split.
    """
    path = _yaml_of(data)
    if not recognises(data):
        raise not_found(data, YOLO.expects)
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes, at most {MAX_YAML_BYTES:,} are read", "shorten it")
    values = read_yaml(path)
    file = _File(path, _root(path, values.get("path")), _names(path, values), _keypoints(path, values))
    train = file.source("train", values["train"])
    if train is None:
        raise DataError(
            f"{path}: train is {values['train']}, but there is no such folder or list of images in {file.root}",
            "correct train, or path",
        )
    key = next((key for key in _VAL_KEYS if values.get(key)), "")
    val = file.source(key, values[key]) if key else None
    missing = "" if val else f"{values[key]} (the key {key} in {path.name})" if key else f"the key val in {path.name}"
    return DataPaths(train, val, missing)


YOLO = Layout("yolo", "data.yaml with train and names", recognises, splits)


@dataclass(frozen=True)
class _File:
    """What the YAML file states about all splits."""

    path: Path
    root: Path
    names: dict[int, str]
    keypoints: int

    def source(self, split: str, entries: JSON) -> YoloSource | None:
        """Return the split that is given as folders of images, lists of images, or both; None if any is absent."""
        given = entries if isinstance(entries, list) else [entries]
        texts = [entry for entry in given if isinstance(entry, str) and entry]
        if len(texts) < len(given) or not texts:
            raise ConfigError(
                f"{self.path}: {split} must be a folder or a list of images (.txt), or several, found {entries!r}",
                "write paths as text",
            )
        places = [self._place(entry) for entry in texts]
        if not all(places):
            return None
        folders = [place for place in places if place and place.is_dir()]
        lists = [place for place in places if place and not place.is_dir()]
        # Names relative to what all have in common: short, and never with `..` but where a list has it.
        base = Path(
            os.path.commonpath([os.path.abspath(folder) for folder in [*folders, *([self.root] * bool(lists))]])
        )
        listed = [image for each in lists for image in _listed(each, base)]
        return YoloSource(self.path, base, split, [*map(str, folders)], listed, self.names, self.keypoints, self.root)

    def _place(self, entry: str) -> Path | None:
        """Return what an entry names; exporters put ``../`` before it although it lies beside the YAML file."""
        for text in (entry, entry.removeprefix("../")):
            place = Path(os.path.abspath(self.root / text))
            if place.is_dir() or (place.is_file() and place.suffix == ".txt"):
                return place
        return None


def _root(path: Path, given: JSON) -> Path:
    """Return the folder that entries are relative to: ``path`` if it exists, else that of the YAML file."""
    folder = Path(os.path.abspath(path.parent))
    if given is not None and not isinstance(given, str):
        raise ConfigError(f"{path}: path must be a folder, found {given!r}", "write the path as text")
    wanted = folder / given if given else folder
    return Path(os.path.abspath(wanted)) if wanted.is_dir() else folder


def _names(path: Path, values: dict[str, JSON]) -> dict[int, str]:
    """Return name by class; classes without names are called class_0 and so on."""
    names, count = values.get("names"), values.get("nc")
    if count is not None and (type(count) is not int or count < 1):
        raise ConfigError(f"{path}: nc must be the number of classes, found {count!r}", "correct nc, or leave it out")
    if names is None:
        names = [f"class_{i}" for i in range(count or 0)]
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"{path}: names must be a list, or lines of `number: name`, found {names!r}", "correct it")
    for key, name in names.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10) or isinstance(name, list | dict | None):
            raise ConfigError(f"{path}: names: expected `number: name`, found `{key}: {name}`", "correct the line")
    if count is not None and count != len(names):
        raise ConfigError(f"{path}: nc is {count}, but there are {len(names)} names", "correct nc, or leave it out")
    return {int(key): str(name) for key, name in names.items()}


def _keypoints(path: Path, values: dict[str, JSON]) -> int:
    """Return how many numbers follow a box, of a set with key points; they are not used."""
    match values.get("kpt_shape"):
        case None:
            return 0
        case [int(points), int(numbers)]:
            return points * numbers
        case other:
            raise ConfigError(f"{path}: kpt_shape must be two numbers, found {other!r}", "correct it")


def _listed(path: Path, base: Path) -> list[Listed]:
    """Return the images of a list, by names relative to ``base``; those that lead out of it keep their ``..``."""
    try:
        lines = read_regular(path, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{path}: the list of images cannot be read: {reason}", "correct or replace it") from error
    entries = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    start = _start(path, base, [entry for _, entry in entries])
    return [
        Listed(os.path.relpath(os.path.join(start, entry), base), f"{path.name}:{number}")
        for number, entry in entries
        if "\0" not in entry or _refuse_null(path, number)
    ]


def _start(path: Path, base: Path, entries: Sequence[str]) -> Path:
    """Return the folder that a list is relative to: its own, or else the root, by the first image."""
    starts = (path.parent, base)
    return next((each for each in starts if entries and (each / entries[0]).is_file()), path.parent)


def _refuse_null(path: Path, number: int) -> bool:
    raise DataError(f"{path}:{number}: the name of an image holds a null character", "correct the list", code="X01")
