"""What a trainer tells whoever watches; the command line shows it as a bar or as lines."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Watches a run. Only the main process has one that shows anything."""

    @property
    def lost(self) -> str:
        """Why nothing more can be shown, such as a closed pipe; empty while it can."""

    def line(self, text: str) -> None:
        """Show one line."""

    def begin(self, total: int, done: int) -> None:
        """Training starts or goes on: ``done`` of ``total`` optimiser steps."""

    def step(self, done: int, epoch: int, loss: float) -> None:
        """One optimiser step is done."""

    def evaluated(self, ap: float) -> None:
        """The detector was evaluated; ``ap`` in [0, 1], or -1 if nothing could be measured."""

    def end(self) -> None:
        """Training is over, for whatever reason."""


class Silent:
    """Shows nothing."""

    lost = ""

    def line(self, text: str) -> None:
        """Ignore the line."""

    def begin(self, total: int, done: int) -> None:
        """Ignore the start."""

    def step(self, done: int, epoch: int, loss: float) -> None:
        """Ignore the step."""

    def evaluated(self, ap: float) -> None:
        """Ignore the result."""

    def end(self) -> None:
        """Ignore the end."""


def figure(value: float) -> str:
    """Return a figure in [0, 1] as text, or a dash for COCO's -1, which says that there was nothing to measure."""
    return "-" if value < 0 else f"{value:.3f}"
