"""What pages show: commands, code and files, in blocks and between backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = ("loradetr", "make", "python", "torchrun")


@dataclass(frozen=True)
class Shown:
    """Something that a page shows, outside of diagrams.

    Attributes:
        kind: ``command``, ``mention`` (the name of a command alone), ``make``, ``script`` or ``code``; or the language
            of a block that has one.
        text: of a line, a block or what stands between backticks.
        block: stands in a block rather than in a sentence.
    """

    kind: str
    text: str
    block: bool = False


def shown_in(text: str) -> Iterator[Shown]:
    """Give what a page shows from top to bottom."""
    at = 0
    for fence in FENCE.finditer(text):
        yield from _in_prose(text[at : fence.start()])
        yield from _in_block(fence[1], fence[2])
        at = fence.end()
    yield from _in_prose(text[at:])


def _in_prose(text: str) -> Iterator[Shown]:
    for code in INLINE.findall(text):
        joined = " ".join(code.split())
        yield Shown(kind_of(joined.split()), joined)


def _in_block(language: str, text: str) -> Iterator[Shown]:
    if language:
        yield Shown(language, text, block=True)
        return
    for line in text.replace("\\\n", " ").splitlines():
        command = " ".join(line.split(" #")[0].split())
        kind = kind_of(command.split())
        if kind != "code":
            yield Shown(kind, command, block=True)


def kind_of(words: list[str]) -> str:
    """Return the kind of a line by its words."""
    if len(words) < 2 or words[0] not in PROGRAMS:
        return "code"
    if words[0] != "loradetr":
        return "make" if words[0] == "make" else "script"
    # What needs no more words than its name is the demo, which has tests of its own.
    return "command" if len(words) > 2 else "mention"
