"""Pascal VOC: an XML file for each image, in the folders of the challenge or beside the images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lora_detr.data.coco.source import DataPaths, ReadAs
from lora_detr.data.layouts.layout import VALIDATION, Layout, not_found
from lora_detr.data.layouts.voc_source import VocSource, XmlFile
from lora_detr.errors import ConfigError, DataError
from lora_detr.regular_files import read_regular

MAX_LIST_BYTES = 100_000_000

_XML, _IMAGES = "Annotations", "JPEGImages"
# Folders of XML files and of images, of sets without lists.
_PAIRS = (
    ("", ""),
    (_XML, _IMAGES),
    ("Annotations", "images"),
    ("annotations", "images"),
    ("annotations/xmls", "images"),
)
_LOOKED_AT = 1000  # entries of a folder until it is taken for one without XML files


def recognises(data: Path) -> bool:
    """Return whether there are folders of the challenge, or XML files with images."""
    return bool(_years(data)) or _pair(data / "train") is not None or _pair(data) is not None


def splits(data: Path, how: ReadAs) -> DataPaths:
    """Find the splits: by lists, by folders, or all as the training split.

    Raises:
        ConfigError: there are several years.
        DataError: there is no training split, or a list cannot be read.
    """
    years = _years(data)
    if len(years) > 1:
        raise ConfigError(
            f"{data}: expected one year, found {', '.join(year.name for year in years)}",
            f"give one of them, such as --data {years[0]}",
        )
    if years:
        return _by_lists(years[0], how)
    pair = _pair(data / "train")
    if pair is None:
        pair = _pair(data)
        if pair is None:
            raise not_found(data, VOC.expects)
        return DataPaths(_all_of(data, pair, "", how), None, "valid/ with XML files")
    train = _all_of(data / "train", pair, "train/", how)
    for name in VALIDATION:
        pair = _pair(data / name)
        if pair is not None:
            return DataPaths(train, _all_of(data / name, pair, f"{name}/", how, train))
    return DataPaths(train, None, "valid/ with XML files")


VOC = Layout(
    "voc",
    f"VOCdevkit/VOC2007/ with {_XML}/, {_IMAGES}/ and ImageSets/Main/, or XML files with images in train/",
    recognises,
    splits,
)


def _years(data: Path) -> list[Path]:
    """Return the folders with lists in a folder: itself, those in it, or those in ``VOCdevkit/`` in it."""
    for folder in (data, data / "VOCdevkit"):
        candidates = [folder] if folder == data else []
        try:
            candidates += [folder / name for name in sorted(os.listdir(folder)) if name.startswith("VOC")]
        except OSError:
            continue
        found = [each for each in candidates if (each / "ImageSets" / "Main").is_dir() and (each / _XML).is_dir()]
        if found:
            return found[:1] if found[0] == data else found
    return []


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of XML files and of images in a folder; None if there are none."""
    pairs = ((folder / xml, folder / images) for xml, images in _PAIRS)
    return next((pair for pair in pairs if pair[1].is_dir() and _has_xml(pair[0])), None)


def _has_xml(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_xml(entry.name) for entry in islice(entries, _LOOKED_AT))
    except OSError:
        return False


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _all_of(
    folder: Path, pair: tuple[Path, Path], prefix: str, how: ReadAs, train: VocSource | None = None
) -> VocSource:
    """Return the split of all XML files of a folder."""
    try:
        names = sorted(name for name in os.listdir(pair[0]) if _is_xml(name))
    except OSError as error:
        raise DataError(f"{pair[0]}: the folder cannot be read: {error.strerror}", "check its permissions") from error
    inside = "" if pair[0] == folder else os.path.relpath(pair[0], folder) + "/"
    files = [XmlFile(name[:-4], str(pair[0] / name), f"{prefix}{inside}{name}") for name in names]
    return VocSource(folder, pair[1], prefix.rstrip("/") or folder.name, files, how, train, unlisted=True)


def _by_lists(year: Path, how: ReadAs) -> DataPaths:
    lists = year / "ImageSets" / "Main"
    train, val = lists / "train.txt", lists / "val.txt"
    if not train.is_file():  # what is trained on is trainval then, and what is measured on is test
        train, val = lists / "trainval.txt", lists / "test.txt"
    if not train.is_file():
        raise DataError(f"{lists}: expected train.txt or trainval.txt, found neither", "add a list of the images")
    source = _listed(year, train, how)
    if not val.is_file():
        return DataPaths(source, None, f"ImageSets/Main/{val.name}")
    return DataPaths(source, _listed(year, val, how, source))


def _listed(year: Path, path: Path, how: ReadAs, train: VocSource | None = None) -> VocSource:
    files = [XmlFile(each, str(year / _XML / f"{each}.xml"), f"{_XML}/{each}.xml") for each in _ids(path)]
    return VocSource(path, year / _IMAGES, f"{year.name}/{path.name}", files, how, train)


def _ids(path: Path) -> Iterable[str]:
    """Return the images of a list; a line of it is a name without ending."""
    try:
        lines = read_regular(path, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{path}: the list of images cannot be read: {reason}", "correct or replace it") from error
    return list(_checked(path, lines))


def _checked(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) > 1:
            raise DataError(
                f"{path}:{number}: expected the name of an image, found {len(fields)} columns; lists with 1 and -1 are "
                "of one class",
                "leave one name in each line",
            )
        for name in fields:
            inside = os.path.normpath(name)
            if "\0" in name or os.path.isabs(name) or inside.startswith(".."):
                raise DataError(f"{path}:{number}: {name} leads out of {_XML}/", "correct the list", code="X01")
            yield name
