"""Where a data set keeps its annotation files and images: a COCO folder, or a YAML file that names the paths."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from lora_detr.config.yaml_subset import read_yaml
from lora_detr.data.coco.elsewhere import four_lines
from lora_detr.data.coco.source import DataPaths, JsonSource
from lora_detr.errors import ConfigError, DataError, is_address, nearest, printable
from lora_detr.regular_files import open_regular

COCO_FOLDER = Path("data/coco")
"""Where COCO is looked for when nothing else is said."""

OWN_DATA = "docs/own_data.md lists the formats"

GENERATED = ("shapes", "shapes-sparse", "shapes-easy")
"""Names that ``--data`` takes instead of a path. Only for messages: ``resolve_generated`` makes the sets."""

MAX_YAML_BYTES = 100_000
"""More than four paths ever need; an annotation file given by mistake would take minutes to parse as YAML."""

_TOP_KEY = re.compile(rb"^['\"]?(\w+)['\"]?[ \t]*:", re.MULTILINE | re.ASCII)

PATH_KEYS = ("train_annotations", "train_images", "val_annotations", "val_images")


def coco_splits(data: Path) -> DataPaths:
    """Find the training and validation split of a data set.

    Args:
        data: a folder with ``annotations/instances_{train2017|train}.json`` and images in ``train2017/`` or
            ``train/`` (likewise val), or a YAML file with the keys ``train_annotations``, ``train_images`` and
            optionally ``val_annotations``, ``val_images``, relative to the YAML file.

    Raises:
        ConfigError: ``data`` does not exist, or the YAML file is malformed or larger than ``MAX_YAML_BYTES``.
        DataError: the training split, or a path named in the YAML file, is not there.
    """
    if data.is_dir():
        return _from_folder(data)
    if data.is_file():
        return _from_yaml(data)
    if is_address(data):
        raise ConfigError(f"--data {data}: is an address", "download the data set, and give its folder")
    raise ConfigError(
        f"--data {data}: expected a COCO folder or a YAML file, found "
        + ("neither, but a pipe or a device" if data.exists() else f"nothing there{nearest(data.name, GENERATED)}"),
        "check the path; a COCO folder has annotations/instances_train.json and train/; "
        f"generated sets are {', '.join(GENERATED)}",
    )


def _from_folder(data: Path) -> DataPaths:
    train, missing = _find(data, "train")
    if train is None:
        found = ", ".join(printable(name) for name in sorted(entry.name for entry in data.iterdir())[:10]) or "nothing"
        lines = "".join(f"\n  {line}" for line in four_lines(data))
        remedy = (
            f"it has COCO files elsewhere: write {data / 'data.yaml'} with these lines, and give it as --data{lines}"
        )
        raise DataError(
            f"{data}: expected {missing}, found {found}",
            remedy
            if lines
            else "--data takes a COCO folder, a YAML file, or a set in a format that docs/own_data.md lists",
        )
    return DataPaths(train, *_find(data, "val"))


def is_coco(data: Path) -> bool:
    """Return whether a folder has a training split where COCO has it, or a file is a YAML file of paths."""
    return _find(data, "train")[0] is not None if data.is_dir() else PATH_KEYS[0] in top_keys(data)


def top_keys(path: Path) -> set[str]:
    """Return the keys of the outermost level of a YAML file, without parsing it; nothing if it cannot be read."""
    try:
        with open_regular(path) as file:
            return {key.decode() for key in _TOP_KEY.findall(file.read(MAX_YAML_BYTES))}
    except OSError:
        return set()


def _find(data: Path, split: str) -> tuple[JsonSource | None, str]:
    """Return the split and an empty text, or None and what is missing."""
    names = (f"{split}2017", split)
    for name in names:
        annotations = data / "annotations" / f"instances_{name}.json"
        if annotations.is_file():
            # The folder of the same year first, then the other.
            for folder in sorted(names, key=lambda folder: folder != name):
                if (data / folder).is_dir():
                    return JsonSource(annotations, data / folder), ""
            return None, f"images in {names[0]}/ or {names[1]}/"
    return None, f"annotations/instances_{names[0]}.json or annotations/instances_{names[1]}.json"


def _from_yaml(path: Path) -> DataPaths:
    size = path.stat().st_size
    if size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: expected a YAML file of paths, found {size} bytes", _what_to_write(path))
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(error.message, f"{error.remedy}; {_what_to_write(path)}", code=error.code) from error
    for key, value in values.items():
        if key not in PATH_KEYS:
            raise ConfigError(f"{path}: unknown key '{key}'{nearest(key, PATH_KEYS)}", _what_to_write(path))
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: {key} must be a path, found {value!r}", "write the path as text")
    paths = {key: path.parent / str(values[key]) for key in PATH_KEYS if values.get(key)}
    absent = [key for key in PATH_KEYS if key not in paths]
    if absent not in ([], list(PATH_KEYS[2:])):
        raise ConfigError(
            f"{path}: missing key '{absent[0]}'", "val_annotations and val_images may be left out, but only together"
        )
    for key, target in paths.items():
        is_folder = key.endswith("images")
        if not (target.is_dir() if is_folder else target.is_file()):
            raise DataError(
                f"{path}: {key} is {target}, but there is no such {'folder' if is_folder else 'file'}",
                f"correct the path; it is taken from the folder of {path.name}",
            )
    missing = f"the keys val_annotations and val_images in {path.name}" if absent else ""
    train, val = (
        JsonSource(paths[annotations], paths[images]) if annotations in paths else None
        for annotations, images in (PATH_KEYS[:2], PATH_KEYS[2:])
    )
    assert train is not None
    return DataPaths(train, val, missing)


def _what_to_write(path: Path) -> str:
    """Return what is expected in a YAML file of paths; all of it where the file looks like an annotation file."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        if file.read(64).lstrip().startswith(b"{"):
            file_and_folder = [f"{key}: {'FOLDER' if key.endswith('images') else 'FILE.json'}" for key in PATH_KEYS]
            return f"list annotation files in a YAML file of four lines: {', '.join(file_and_folder)}"
    return f"known keys: {', '.join(PATH_KEYS)}"
