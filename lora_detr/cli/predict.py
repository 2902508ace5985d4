"""``loradetr predict``."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lora_detr.cli.choices import checkpoint_option, device_option, nms_option, no_ema_option, which_checkpoint
from lora_detr.cli.console import console
from lora_detr.cli.image_plan import DOCUMENT, PlannedImage, find_images, plan
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError, DataError, counted, printable
from lora_detr.json_value import json_text

if TYPE_CHECKING:
    from lora_detr.evaluation.predictor import ImagePrediction, NmsChoice, Predictor

WHAT, WRITTEN = "What is found", "What is written"

logger = logging.getLogger("lora_detr")

DEFAULT_OUTPUT = Path("predictions")

JPEG_QUALITY = 92


def predict(
    model: Annotated[Path, typer.Argument(help="Run, checkpoint, stripped file, .pth or .onnx.", metavar="MODEL")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.", metavar="IMAGES")],
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Search folders within folders too.", rich_help_panel=WHAT)
    ] = False,
    score: Annotated[
        float | None,
        typer.Option(
            help="Minimum score (the model's operating point).", min=0, max=1, metavar="SCORE", rich_help_panel=WHAT
        ),
    ] = None,
    nms: Annotated[float | None, nms_option(rich_help_panel=WHAT)] = None,
    no_nms: Annotated[
        bool, typer.Option("--no-nms", help="Suppress no duplicates, even if the model does.", rich_help_panel=WHAT)
    ] = False,
    checkpoint: Annotated[str, checkpoint_option(rich_help_panel=WHAT)] = "best",
    no_ema: Annotated[bool, no_ema_option(rich_help_panel=WHAT)] = False,
    batch_size: Annotated[
        int, typer.Option(help="Images per forward pass.", min=1, metavar="N", rich_help_panel=WHAT)
    ] = 1,
    tiles: Annotated[
        int | None,
        typer.Option(help="Also search tiles of N pixels (no tiles).", min=1, metavar="N", rich_help_panel=WHAT),
    ] = None,
    device: Annotated[str, device_option(rich_help_panel=WHAT)] = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write into.", metavar="DIR", rich_help_panel=WRITTEN)
    ] = DEFAULT_OUTPUT,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO file with the ids of the images.", metavar="FILE", rich_help_panel=WRITTEN),
    ] = None,
    no_draw: Annotated[bool, typer.Option("--no-draw", help="Write no pictures.", rich_help_panel=WRITTEN)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print predictions.json and nothing else.", rich_help_panel=WRITTEN)
    ] = False,
) -> None:
    """Find objects in images: pictures with boxes, and one COCO file.

    Example: loradetr predict runs/deformable-tiny-lora3-1 photos --score 0.5
    """
    from lora_detr.atomic_files import prepare_directory, write_file
    from lora_detr.evaluation.predictor import coco_document, open_predictor

    show_log(console(stderr=True))
    which = which_checkpoint(checkpoint)
    paths, left_out = find_images(images, recursive=recursive)
    planned = plan(paths, output, annotations, not no_draw)
    for image in planned:
        if not _is_text(image.file_name):
            name = printable(image.file_name)
            logger.warning(f"{name}: the file name is not UTF-8; {DOCUMENT} has it as printed here")
    predictor = open_predictor(model, which, device=device, ema=not no_ema)
    suppress = _suppression(nms, no_nms)
    prepare_directory(output)
    out, beside = console(), console(stderr=as_json)
    if not as_json:
        out.print(_used(predictor, score, suppress), soft_wrap=True)
    for remark in left_out:
        beside.print(remark, soft_wrap=True)
    faults: list[DataError] = []
    done: list[PlannedImage] = []
    predictions: list[ImagePrediction] = []
    with _shown(out, len(planned), quiet=as_json) as show:
        for image, found in _predicted(predictor, planned, score, suppress, batch_size, tiles):
            if isinstance(found, DataError):
                faults.append(found)
                show(f"{printable(image.path.name)}: cannot be read")
                continue
            if image.picture is not None:
                write_file(image.picture, _encoded(found, image.picture))
            show(f"{printable(image.path.name)}: {found.describe()}")
            done.append(image)
            predictions.append(replace(found, source=image.path))  # its pixels would fill the memory
    document = coco_document(
        predictor.categories, predictions, [image.id for image in done], [image.file_name for image in done]
    )
    text = json_text(document) + "\n"
    write_file(output / DOCUMENT, text.encode())
    if as_json:
        sys.stdout.write(text)
    else:
        pictures = "" if no_draw or not done else f" and {counted(len(done), 'picture')}"
        out.print(f"wrote {output / DOCUMENT}{pictures}", soft_wrap=True)
    if faults:
        raise _all_of(faults, len(done))


def _suppression(nms: float | None, no_nms: bool) -> NmsChoice:
    if nms is not None and no_nms:
        raise ConfigError("--nms and --no-nms exclude each other", "give one of them, or neither")
    if no_nms:
        return None
    return "chosen" if nms is None else nms


def _used(predictor: Predictor, score: float | None, nms: NmsChoice) -> str:
    """Return a line about the score that objects must reach and about suppression."""
    from lora_detr.recipe.preparation import describe_suppression

    iou = predictor.chosen_nms_iou if isinstance(nms, str) else nms
    least = sorted(set(predictor.chosen_scores if score is None else [score]))
    scores = " to ".join(f"{value:.2f}" for value in least[:: max(1, len(least) - 1)])
    own = predictor.config.operating_point is not None and score is None
    return f"score {scores}{' (operating point of the model)' if own else ''}, {describe_suppression(iou)}"


def _predicted(
    predictor: Predictor,
    planned: Sequence[PlannedImage],
    score: float | None,
    nms: NmsChoice,
    batch_size: int,
    tiles: int | None,
) -> Iterator[tuple[PlannedImage, ImagePrediction | DataError]]:
    """Give every image with its prediction, or with the reason why it cannot be read."""
    from lora_detr.evaluation.predictor import read_source

    for start in range(0, len(planned), batch_size):
        readable, pixels = [], []
        for image in planned[start : start + batch_size]:
            try:
                pixels.append(read_source(image.path, predictor.config.max_pixels))
                readable.append(image)
            except DataError as error:
                yield image, error
        found = predictor.predict_many(pixels, score, nms, batch_size=batch_size, tiles=tiles)
        yield from zip(readable, found, strict=True)


def _is_text(name: str) -> bool:
    """Return whether a file name is UTF-8; Python may hold bytes of it, also where they are, if it expects ASCII."""
    try:
        return bool(name.encode("utf-8", "surrogateescape").decode("utf-8"))
    except UnicodeError:
        return False


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
    rest = f"{counted(done, 'other image')} {'is' if done == 1 else 'are'} done" if done else "no image is done"
    return DataError("\n".join(lines), f"{rest}; replace or remove what cannot be read", code=first.code)
