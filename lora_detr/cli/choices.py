"""Options that several commands share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import typer

from lora_detr.errors import ConfigError
from lora_detr.json_value import is_number

T = TypeVar("T", bound=str)

CHECKPOINTS: tuple[Literal["best", "last"], ...] = ("best", "last")
BAD_DATA: tuple[Literal["error", "skip"], ...] = ("error", "skip")
VERIFY: tuple[Literal["none", "decode", "hash"], ...] = ("none", "decode", "hash")

EXPORTED = ".onnx"
"""Suffix of an exported file, which is run where no detector can be built."""

VOC_OFFSETS = ("auto", "0", "1")
VOC_DIFFICULT = ("ignore", "keep")

OPTIONAL_VALUES = {"--nms": "0.7"}
"""Options whose number may be left out, and what it is then: typer knows no such options."""

# Declared once for all commands that have them; each adds the panel of its help screen.
checkpoint_option = partial(typer.Option, help="Checkpoint to use.", metavar="best|last")
no_ema_option = partial(typer.Option, "--no-ema", help="Raw weights, not the averaged ones.")
nms_option = partial(typer.Option, help="Drop duplicates above this IoU (0.7).", min=0, max=1, metavar="[IOU]")
device_option = partial(typer.Option, help="Device to run on.", metavar="auto|cpu|cuda")
data_format_option = partial(typer.Option, help="Layout of the data (recognised).", metavar="NAME")
json_option = partial(typer.Option, "--json", help="Print one JSON object and nothing else.")
json_report_option = partial(typer.Option, "--json", help="Print the report as JSON and nothing else.")


def data_set(given: Path | None) -> Path | None:
    """Return the path that ``--data`` means, if it was given; a generated set named there is made on first use.

    Raises:
        OutputError: the generated set cannot be written.
    """
    from lora_detr.data.synthetic.sets import resolve_generated

    return None if given is None else resolve_generated(given)


def which_checkpoint(text: str) -> Literal["best", "last"]:
    """Return the value of ``--checkpoint``.

    Raises:
        ConfigError: it is neither of the two.
    """
    return one_of("--checkpoint", text, CHECKPOINTS, "best has the highest AP, last is the newest")


def bad_data(text: str) -> Literal["error", "skip"]:
    """Return the value of ``--on-bad-data``.

    Raises:
        ConfigError: it is neither of the two.
    """
    return one_of("--on-bad-data", text, BAD_DATA, "skip leaves out bad boxes and images, and counts them")


def how_to_verify(text: str) -> Literal["none", "decode", "hash"]:
    """Return the value of ``--verify``.

    Raises:
        ConfigError: it is none of the three.
    """
    remedy = "decode reads every image, hash compares with SHA256SUMS in the folder of the images"
    return one_of("--verify", text, VERIFY, remedy)


def one_of(option: str, text: str, known: tuple[T, ...], remedy: str) -> T:
    """Return the value of an option that is one of a few.

    Raises:
        ConfigError: it is none of them.
    """
    for value in known:
        if text == value:
            return value
    *others, last = known
    raise ConfigError(f"{option} {text}: expected {', '.join(others)} or {last}", remedy)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, which a path would take for the current folder.

    Raises:
        ConfigError: there is one; names what stands before it.
    """
    for before, argument in zip(["loradetr", *arguments], arguments, strict=False):
        if not argument.strip():
            raise ConfigError(f"empty text after '{before}'", "an unset variable of the shell gives one; leave it out")


def fill_in_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of each option of ``OPTIONAL_VALUES`` that was given without one."""
    filled: list[str] = []
    for i, argument in enumerate(arguments):
        filled.append(argument)
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        if argument in OPTIONAL_VALUES and not is_number(following):
            filled.append(OPTIONAL_VALUES[argument])
    return filled
