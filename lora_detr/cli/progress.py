"""How a run is shown: a bar on a terminal, plain lines elsewhere. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lora_detr.cli.streams import lost_output
from lora_detr.records.display import figure

# Steps between plain lines where there is no terminal.
PLAIN_EVERY = 50


class ConsoleDisplay:
    """Shows a run on a console.

    Args:
        console: prints.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.total, self.first, self.started = 0, 0, 0.0

    @property
    def lost(self) -> str:
        """Why standard output is gone; empty while it is not."""
        return lost_output()

    def line(self, text: str) -> None:
        """Show one line, above the bar if there is one."""
        self.console.print(text, soft_wrap=True)

    def begin(self, total: int, done: int) -> None:
        """Start the bar."""
        self.total, self.first, self.started = total, done, time.monotonic()
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  AP {task.fields[ap]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("", total=total, completed=done, epoch=1, loss="-", ap="-")
        self.progress.start()

    def step(self, done: int, epoch: int, loss: float) -> None:
        """Move the bar, or print a line now and then."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, epoch=epoch + 1, loss=f"{loss:.2f}")
        elif done % PLAIN_EVERY == 0 and done < self.total:
            elapsed = time.monotonic() - self.started
            left = elapsed / (done - self.first) * (self.total - done)
            self.line(f"step {done}/{self.total}  loss {loss:.3f}  {elapsed:.0f} s, about {left:.0f} s left")

    def evaluated(self, ap: float) -> None:
        """Show the last result beside the loss."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, ap=figure(ap))

    def end(self) -> None:
        """Stop the bar."""
        if self.progress is not None:
            self.progress.stop()


def _bar(console: Console) -> Callable[[str, int, int], None]:
    """Return what shows a bar while many files are read."""
    bars: list[Progress] = []

    def show(what: str, done: int, total: int) -> None:
        if not bars:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            bars.append(Progress(*columns, console=console, transient=True))
            bars[0].add_task(what, total=total)
            bars[0].start()
        bars[0].update(bars[0].task_ids[0], completed=done)
        if done >= total:
            bars.pop().stop()

    return show


def show_log(console: Console) -> None:
    """Send the package's messages to the console, a line each, and show there how far long reading is."""

    from lora_detr.data.progress import watch

    watch(_bar(console) if console.is_terminal else None)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"{record.levelname.lower()}: {record.getMessage()}", soft_wrap=True)

    logger = logging.getLogger("lora_detr")
    logger.handlers = [Lines()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
