"""Which images ``loradetr predict`` reads, what it calls them, and where it draws them. Imports no torch at the top."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_detr.errors import ConfigError, DataError, counted, is_address, printable

DOCUMENT = "predictions.json"
"""File of all predictions, in the folder that is written into."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx"),
)
"""Files of a folder that are taken for images. A file that is named itself may have any suffix."""

SHOWN = 10
"""Names listed in a message."""


@dataclass(frozen=True)
class PlannedImage:
    """An image to be done.

    Attributes:
        path: of the file.
        file_name: in the document.
        id: in the document.
        picture: file to draw into; None for no drawing.
    """

    path: Path
    file_name: str
    id: int
    picture: Path | None


def find_images(places: Sequence[Path], *, recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Return the files, and the images of folders by name, each once, and a line for what is left out of a folder.

    Args:
        places: files and folders.
        recursive: search the folders within folders too.

    Raises:
        ConfigError: a path does not exist, or is an address.
        DataError: a folder has no image.
    """
    missing = [str(place) for place in places if not place.exists()]
    if missing and is_address(Path(missing[0])):
        raise ConfigError(f"{missing[0]}: is an address, not a file", "download the image, and give the file")
    if missing:
        raise ConfigError(f"no such file or folder: {_listed(missing)}", "give image files, or folders of images")
    found: dict[str, Path] = {}
    remarks = []
    for place in places:
        entries = [place]
        if place.is_dir():
            entries, others, folders = _searched(place, recursive)
            if not entries:
                count = counted(len(others) + len(folders), "entry", "entries")
                raise DataError(
                    f"{place}: expected images ({' '.join(SUFFIXES)}), found none among {count}",
                    "--recursive searches the folders in it" if folders else "give the folder that holds the images",
                )
            if others:
                remarks.append(
                    f"{place}: left out {counted(len(others), 'file')} not named as images: {_listed(others)}"
                )
            if folders:
                remarks.append(f"{place}: left out {counted(len(folders), 'folder')} (--recursive): {_listed(folders)}")
        for entry in entries:
            # Not resolved: a link has a name of its own, and may be meant as an image of its own.
            found.setdefault(os.path.abspath(entry), entry)
    return list(found.values()), remarks


def _searched(folder: Path, recursive: bool) -> tuple[list[Path], list[str], list[str]]:
    """Return the images of a folder, the names of its other files, and those of folders that were not searched."""
    images, others, folders = [], [], []
    for name in _names_in(folder):
        path = folder / name
        # A hidden file beside a photo is what some systems keep about it, not a photo.
        if name.startswith("."):
            continue
        if path.is_dir() and recursive and not path.is_symlink():
            more = _searched(path, recursive)
            images += more[0]
            others += [f"{name}/{other}" for other in more[1]]
            folders += [f"{name}/{other}" for other in more[2]]
        elif path.is_dir():
            folders.append(name)
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            others.append(name)
    return images, others, folders


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}", "check its permissions") from error


def plan(paths: Sequence[Path], output: Path, annotations: Path | None, draw: bool) -> list[PlannedImage]:
    """Return what is done with every image.

    Raises:
        ConfigError: a file that would be written is an input.
        DataError: an image is not in the annotation file.
    """
    counts = Counter(path.name for path in paths)
    names = [path.name if counts[path.name] == 1 else path.as_posix() for path in paths]
    ids = list(range(1, len(paths) + 1))
    if annotations is not None:
        ids, names = _known_images(paths, annotations)
    planned = []
    taken: set[str] = set()
    for path, file_name, image_id in zip(paths, names, ids, strict=True):
        picture = output / _free_name(path, taken) if draw else None
        planned.append(PlannedImage(path, file_name, image_id, picture))
    _keep_inputs(
        [path for path in (*paths, annotations) if path is not None],
        [output / DOCUMENT, *(image.picture for image in planned if image.picture is not None)],
    )
    return planned


def _free_name(path: Path, taken: set[str]) -> str:
    """Return a name for the picture that no other image has, in whatever case, and add it to ``taken``."""
    suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    name, n = path.stem + suffix, 1
    while name.lower() in taken:
        n += 1
        name = f"{path.stem}-{n}{suffix}"
    taken.add(name.lower())
    return name


def _keep_inputs(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuse to write over a file that is read.

    Compared by what the system says they are, since a link or a name in another case may lead to the same file.
    """
    known = {(path.stat().st_dev, path.stat().st_ino) for path in inputs if path.exists()}
    for output in outputs:
        if output.exists() and (output.stat().st_dev, output.stat().st_ino) in known:
            raise ConfigError(
                f"--output {output.parent}: {output.name} in it is an input and would be overwritten",
                "choose another --output, or --no-draw for no pictures",
            )


def _known_images(paths: Sequence[Path], annotations: Path) -> tuple[list[int], list[str]]:
    """Return id and file name of every image in a COCO file; the file name must be the end of the image's path.

    Raises:
        DataError: the file cannot be read, an image is not in it or in it twice, or two images are the same in it.
    """
    from lora_detr.data.coco.checks import Findings, check_images, read_root
    from lora_detr.data.coco.report import AnnotationError

    images = Findings(annotations.name, "images", read_root(annotations)["images"])
    ids = check_images(images)
    if images.problems:
        raise AnnotationError(annotations, images.problems)
    by_name: dict[str, list[tuple[int, str]]] = {}
    for image_id, row in zip(ids, images.rows, strict=True):
        by_name.setdefault(_parts(row["file_name"])[-1], []).append((image_id, row["file_name"]))
    found, unknown = [], []
    for path in paths:
        place = Path(os.path.abspath(path)).parts
        fitting = [entry for entry in by_name.get(path.name, ()) if place[-len(_parts(entry[1])) :] == _parts(entry[1])]
        if len(fitting) > 1:
            named = " and ".join(f"id {image_id} ({printable(name)})" for image_id, name in fitting[:2])
            raise DataError(
                f"{annotations.name}: {printable(path)} may be {named}", "make every file name in it unique"
            )
        found += fitting
        unknown += [] if fitting else [str(path)]
    if unknown:
        raise DataError(
            f"{annotations.name}: {len(unknown)} of {len(paths)} images are not in it: {_listed(unknown)}",
            "a file_name must be the end of the image's path; or leave --annotations out to number the images",
        )
    first: dict[int, Path] = {}
    for path, (image_id, name) in zip(paths, found, strict=True):
        if first.setdefault(image_id, path) is not path:
            raise DataError(
                f"{annotations.name}: {printable(first[image_id])} and {printable(path)} are both id {image_id} "
                f"({printable(name)})",
                "give only one of them, or leave --annotations out to number the images",
            )
    return list(first), [name for _, name in found]


def _parts(file_name: str) -> tuple[str, ...]:
    return PurePosixPath(file_name.replace("\\", "/")).parts or ("",)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(map(printable, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")
