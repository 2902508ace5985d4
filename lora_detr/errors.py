"""The errors that a user can cause, each with the exit code of its class.

A message says what was expected, what was found and where; the remedy says what to do. The command line shows both
without a traceback. Anything else that escapes is a bug of ours and exits with 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from os import PathLike, fspath

_BYTES = re.compile("[\udc80-\udcff]+")
"""How Python stands for bytes of a file name that are no text."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal, turns the direction of text, or is no character; line ends and tabs are not among them."""


class LoraDetrError(Exception):
    """Base of all errors a user can cause.

    Args:
        message: one line: what was expected, what was found, where.
        remedy: one line: what to do; may be empty.
        code: short id of the kind of fault, such as ``D07``; may be empty.
    """

    exit_code = 1
    # Whether all processes of a run meet it alike, so that one of them tells.
    on_all_ranks = False

    def __init__(self, message: str, remedy: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        head = f"error[{self.code}]: " if self.code else "error: "
        return head + self.message + (f"\n  {self.remedy}" if self.remedy else "")


class ConfigError(LoraDetrError):
    """Wrong usage or configuration."""

    exit_code = 2
    on_all_ranks = True


class PackageError(ConfigError):
    """An optional package that is not installed, or of another version than expected."""


class DataError(LoraDetrError):
    """Bad annotations or images."""

    exit_code = 3


class CheckpointError(LoraDetrError):
    """A checkpoint or weight file that cannot be used."""

    exit_code = 4


class OutputError(LoraDetrError):
    """Output that cannot be written."""

    exit_code = 5


class NumericalError(LoraDetrError):
    """A value that is not finite, with the term, layer, branch, step and images it came from."""

    exit_code = 6


class WorkerError(LoraDetrError):
    """A worker, rank or process that failed."""

    exit_code = 7


class VerificationError(LoraDetrError):
    """A proof that did not hold (strip, export)."""

    exit_code = 8


class Stopped(LoraDetrError):  # noqa: N818 (an end that was asked for is no fault)
    """A run that ended because it was asked to, after saving.

    Args:
        message: signal and step.
        interrupted: from the keyboard; else by a scheduler, which may start it again.
    """

    exit_code = 75

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        if interrupted:
            self.exit_code = 130

    def __str__(self) -> str:
        return self.message


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 image`` or ``1,200 images``; ``plural`` if adding s is wrong."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Iterable[object], shown: int = 5) -> str:
    """Return the first names, each made printable, with commas between, and dots where there are more."""
    texts = [printable(name) for name in names]
    return ", ".join(texts[:shown]) + (", ..." if len(texts) > shown else "")


def is_address(path: PathLike[str]) -> bool:
    """Return whether what was given as a path is an address (``https://...``; a path keeps one slash)."""
    return re.match(r"(?:https?|s3|gs|ftp):/", fspath(path)) is not None


def escape_controls(text: str) -> str:
    r"""Return a text that can be printed: what steers a terminal, or is no character, is escaped as ``\x1b``.

    Line ends and tabs stay as they are. A text that is escaped already is unchanged.
    """
    text = _BYTES.sub(
        lambda found: found[0].encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace"), text
    )
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def printable(name: object) -> str:
    """Return a name of a file, a path or a class on one line, with all that could mislead a reader escaped."""
    return escape_controls(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
