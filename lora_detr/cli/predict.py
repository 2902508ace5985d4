"""``loradetr predict``."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lora_detr.cli.choices import which_checkpoint
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lora_detr.evaluation.predictor import ImagePrediction, Predictor

WHAT, WRITTEN = "What is found", "What is written"

DEFAULT_OUTPUT = Path("predictions")
DOCUMENT = "predictions.json"

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
"""Files of a folder that are taken for images. A file that is named itself may have any suffix."""

JPEG_QUALITY = 92
SHOWN = 10
"""Names listed in a message."""


@dataclass(frozen=True)
class _Planned:
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


def predict(
    model: Annotated[Path, typer.Argument(help="Run, checkpoint or stripped file.", metavar="MODEL")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.", metavar="IMAGES")],
    score: Annotated[
        float, typer.Option(help="Least score of an object.", min=0, max=1, metavar="SCORE", rich_help_panel=WHAT)
    ] = 0.3,
    nms: Annotated[
        float | None,
        typer.Option(help="Drop duplicates above this IoU (0.7).", min=0, max=1, metavar="[IOU]", rich_help_panel=WHAT),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="Of a run directory.", metavar="best|last", rich_help_panel=WHAT)
    ] = "best",
    no_ema: Annotated[
        bool, typer.Option("--no-ema", help="Raw weights, not the averaged ones.", rich_help_panel=WHAT)
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images of one pass.", min=1, metavar="N", rich_help_panel=WHAT)] = 1,
    device: Annotated[
        str, typer.Option(help="Where to compute.", metavar="auto|cpu|cuda", rich_help_panel=WHAT)
    ] = "auto",
    output: Annotated[
        Path, typer.Option(help="Folder to write into.", metavar="DIR", rich_help_panel=WRITTEN)
    ] = DEFAULT_OUTPUT,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO file that gives images their ids.", metavar="FILE", rich_help_panel=WRITTEN),
    ] = None,
    no_draw: Annotated[bool, typer.Option("--no-draw", help="No pictures.", rich_help_panel=WRITTEN)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print predictions.json and nothing else.", rich_help_panel=WRITTEN)
    ] = False,
) -> None:
    """Find objects in images: pictures with boxes, and one COCO file.

    Example: loradetr predict runs/deformable-tiny-lora3-1 photos --score 0.5
    """
    from lora_detr.atomic_files import prepare_directory, write_file
    from lora_detr.evaluation.predictor import coco_document
    from lora_detr.training.predictor import open_predictor

    show_log(console(stderr=True))
    which = which_checkpoint(checkpoint)
    planned = _plan(_find_images(images), output, annotations, not no_draw)
    predictor = open_predictor(model, which, device=device, ema=not no_ema)
    prepare_directory(output)
    out = console()
    faults: list[DataError] = []
    done: list[_Planned] = []
    predictions: list[ImagePrediction] = []
    with _shown(out, len(planned), quiet=as_json) as show:
        for image, found in _predicted(predictor, planned, score, nms, batch_size):
            if isinstance(found, DataError):
                faults.append(found)
                show(f"{image.path.name}: cannot be read")
                continue
            if image.picture is not None:
                write_file(image.picture, _encoded(found, image.picture))
            show(f"{image.path.name}: {found.describe()}")
            done.append(image)
            predictions.append(replace(found, source=image.path))  # its pixels would fill the memory
    document = coco_document(
        predictor.categories, predictions, [image.id for image in done], [image.file_name for image in done]
    )
    text = json.dumps(document) + "\n"
    write_file(output / DOCUMENT, text.encode())
    if as_json:
        sys.stdout.write(text)
    else:
        pictures = "" if no_draw or not done else f" and {_counted(len(done), 'picture')}"
        out.print(f"wrote {output / DOCUMENT}{pictures}", soft_wrap=True)
    if faults:
        raise _all_of(faults, len(done))


def _find_images(places: Sequence[Path]) -> list[Path]:
    """Return the files, and the images of folders by name, each once.

    Raises:
        ConfigError: a path does not exist.
        DataError: a folder has no image.
    """
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise ConfigError(f"no such file or folder: {_listed(missing)}", "give image files, or folders of images")
    found: dict[str, Path] = {}
    for place in places:
        entries = [place]
        if place.is_dir():
            names = _names_in(place)
            # A hidden file beside a photo is what some systems keep about it, not a photo.
            known = [place / name for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
            entries = [entry for entry in known if not entry.is_dir()]
            if not entries:
                raise DataError(
                    f"{place}: expected images ({' '.join(SUFFIXES)}), found none among {len(names)} entries",
                    "folders within a folder are not searched; name the one that holds the images",
                )
        for entry in entries:
            # Not resolved: a link has a name of its own, and may be meant as an image of its own.
            found.setdefault(os.path.abspath(entry), entry)
    return list(found.values())


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}", "check its permissions") from error


def _plan(paths: Sequence[Path], output: Path, annotations: Path | None, draw: bool) -> list[_Planned]:
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
        planned.append(_Planned(path, file_name, image_id, picture))
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
    from lora_detr.data.checks import Findings, check_images, read_root
    from lora_detr.data.report import AnnotationError

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
            named = " and ".join(f"id {image_id} ({name})" for image_id, name in fitting[:2])
            raise DataError(f"{annotations.name}: {path} may be {named}", "let every file name stand there once")
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
                f"{annotations.name}: {first[image_id]} and {path} are both id {image_id} ({name})",
                "name only one of them, or leave --annotations out to number the images",
            )
    return list(first), [name for _, name in found]


def _parts(file_name: str) -> tuple[str, ...]:
    return PurePosixPath(file_name.replace("\\", "/")).parts or ("",)


def _predicted(
    predictor: Predictor, planned: Sequence[_Planned], score: float, nms: float | None, batch_size: int
) -> Iterator[tuple[_Planned, ImagePrediction | DataError]]:
    """Give every image with its prediction, or with the reason why it cannot be read."""
    from lora_detr.evaluation.predictor import read_source

    for start in range(0, len(planned), batch_size):
        readable, pixels = [], []
        for image in planned[start : start + batch_size]:
            try:
                pixels.append(read_source(image.path))
                readable.append(image)
            except DataError as error:
                yield image, error
        yield from zip(readable, predictor.predict_many(pixels, score, nms, batch_size=batch_size), strict=True)


def _encoded(found: ImagePrediction, path: Path) -> bytes:
    """Return the drawn picture as the content of a file of that name."""
    file = io.BytesIO()
    if path.suffix == ".jpg":
        found.draw().save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        found.draw().save(file, format="PNG")
    return file.getvalue()


@contextmanager
def _shown(out: Console, total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that prints a line an image, below them a bar on a terminal; nothing at all if ``quiet``."""
    if quiet:
        yield lambda text: None
    elif not out.is_terminal:
        yield lambda text: out.print(text, soft_wrap=True)
    else:
        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task("", total=total)

            def show(text: str) -> None:
                out.print(text, soft_wrap=True)
                bar.advance(task)

            yield show


def _all_of(faults: Sequence[DataError], done: int) -> DataError:
    """Return one error that names every image that could not be read."""
    first, *others = faults
    lines = [first.message, *(f"error[{fault.code}]: {fault.message}" for fault in others)]
    rest = f"{_counted(done, 'other image')} {'is' if done == 1 else 'are'} done" if done else "no image is done"
    return DataError("\n".join(lines), f"{rest}; replace or remove what cannot be read", code=first.code)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
