"""How far a long look at many files is: a line now and then, or whatever the command line shows instead."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Show = Callable[[str, int, int], None]
"""Given what is done, how many items are done, and how many there are; called with all of them at the end."""

EVERY = 10.0
"""Seconds between two lines."""
_FIRST, _BETWEEN = 1.0, 0.2  # seconds until something else than lines is shown, and between two looks of it

_watcher: list[Show] = []

logger = logging.getLogger(__name__)


def watch(show: Show | None) -> None:
    """Show progress by a function instead of lines; None for lines again."""
    _watcher[:] = [] if show is None else [show]


def following(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Give the items, and show how many are done if that takes long.

    Args:
        items: any.
        total: how many they are.
        what: such as ``train: read`` (of so many files).
    """
    show = _watcher[0] if _watcher else None
    wait = EVERY if show is None else _BETWEEN
    due = time.monotonic() + (EVERY if show is None else _FIRST)
    shown = False
    try:
        for done, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now < due:
                continue
            due, shown = now + wait, True
            if show is None:
                logger.info("%s %s of %s files", what, f"{done + 1:,}", f"{total:,}")
            else:
                show(what, done + 1, total)
    finally:
        if shown and show is not None:
            show(what, total, total)
