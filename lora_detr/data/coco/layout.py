"""Where a data set keeps its annotation files and images: a COCO folder, or a YAML file that names the paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from lora_detr.data.synthetic.sets import SPECS, resolve_generated
from lora_detr.errors import ConfigError, DataError, nearest

COCO_FOLDER = Path("data/coco")
"""Where COCO is looked for when nothing else is said."""

PATH_KEYS = ("train_annotations", "train_images", "val_annotations", "val_images")


@dataclass(frozen=True)
class DataPaths:
    """The files of a data set.

    Attributes:
        train_annotations: COCO JSON of the training split.
        train_images: folder of its images.
        val_annotations: COCO JSON of the validation split, or None.
        val_images: folder of its images, or None; None exactly if ``val_annotations`` is.
        missing: what was looked for and not found of the validation split; empty if it is there.
    """

    train_annotations: Path
    train_images: Path
    val_annotations: Path | None
    val_images: Path | None
    missing: str = ""


def find_splits(data: Path) -> DataPaths:
    """Find the training and validation split of a data set.

    Args:
        data: a folder with ``annotations/instances_{train2017|train}.json`` and images in ``train2017/`` or
            ``train/`` (likewise val), or a YAML file with the keys ``train_annotations``, ``train_images`` and
            optionally ``val_annotations``, ``val_images``, relative to the YAML file; or the name of a generated set.

    Raises:
        ConfigError: ``data`` does not exist, or the YAML file is malformed.
        DataError: the training split, or a path named in the YAML file, is not there.
    """
    data = resolve_generated(data)
    if data.is_dir():
        return _from_folder(data)
    if data.is_file():
        return _from_yaml(data)
    raise ConfigError(
        f"--data {data}: expected a COCO folder or a YAML file, found nothing there",
        "check the path; a COCO folder has annotations/instances_train.json and train/; "
        f"generated sets are {', '.join(SPECS)}",
    )


def _from_folder(data: Path) -> DataPaths:
    annotations, images, missing = _find(data, "train")
    if annotations is None or images is None:
        found = ", ".join(sorted(entry.name for entry in data.iterdir())[:10]) or "nothing"
        raise DataError(f"{data}: expected {missing}, found {found}", "--data takes a COCO folder or a YAML file")
    val_annotations, val_images, missing = _find(data, "val")
    return DataPaths(annotations, images, val_annotations, val_images, missing)


def _find(data: Path, split: str) -> tuple[Path | None, Path | None, str]:
    """Return both paths and an empty text, or twice None and what is missing."""
    names = (f"{split}2017", split)
    for name in names:
        annotations = data / "annotations" / f"instances_{name}.json"
        if annotations.is_file():
            # The folder of the same year first, then the other.
            for folder in sorted(names, key=lambda folder: folder != name):
                if (data / folder).is_dir():
                    return annotations, data / folder, ""
            return None, None, f"images in {names[0]}/ or {names[1]}/"
    return None, None, f"annotations/instances_{names[0]}.json or annotations/instances_{names[1]}.json"


def _from_yaml(path: Path) -> DataPaths:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: expected YAML with the keys {', '.join(PATH_KEYS)}: {where}", "correct the file"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected a mapping with the keys {', '.join(PATH_KEYS)}",
            "give a COCO folder, or such a YAML file",
        )
    for key, value in values.items():
        if key not in PATH_KEYS:
            raise ConfigError(
                f"{path}: unknown key '{key}'{nearest(str(key), PATH_KEYS)}", f"known: {', '.join(PATH_KEYS)}"
            )
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: {key} must be a path, found {value!r}", "write the path as text")
    paths = {key: path.parent / values[key] for key in PATH_KEYS if values.get(key)}
    absent = [key for key in PATH_KEYS if key not in paths]
    if absent not in ([], list(PATH_KEYS[2:])):
        raise ConfigError(
            f"{path}: missing key '{absent[0]}'", "val_annotations and val_images may be left out, but only together"
        )
    for key, target in paths.items():
        is_folder = key.endswith("images")
        if not (target.is_dir() if is_folder else target.is_file()):
            raise DataError(
                f"{path}: {key} names {target}, but there is no such {'folder' if is_folder else 'file'}",
                f"correct the path; it is taken from the folder of {path.name}",
            )
    missing = f"the keys val_annotations and val_images in {path.name}" if absent else ""
    return DataPaths(
        paths[PATH_KEYS[0]], paths[PATH_KEYS[1]], paths.get(PATH_KEYS[2]), paths.get(PATH_KEYS[3]), missing
    )
