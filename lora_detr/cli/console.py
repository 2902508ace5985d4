"""What the command line prints with, and how an exception becomes an exit code. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lora_detr.cli.streams import LOST_OUTPUT, printed_streams
from lora_detr.errors import LoraDetrError, Stopped, escape_controls
from lora_detr.processes.process import REQUEUE, handled_by, launcher_may_end_first, own_rank, stop_requested

PLAIN_WIDTH = 120
"""Columns where the output is not a terminal and ``COLUMNS`` is unset, so that logs do not depend on who reads them."""

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
INTERNAL = 1

PATIENCE = 30
"""Seconds that a process leaves the first one to tell of a fault which they all have.

All meet it at the same point, so the first is not far; if it hangs all the same, this process tells in its place.
"""


def console(*, stderr: bool = False) -> Console:
    """Return a console for standard output or standard error.

    It uses colours and the width of the window on a terminal only, and no colours when ``NO_COLOR`` is set; numbers and
    paths are never coloured by guess.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    quiet = not stderr and own_rank() != 0
    return _EscapingConsole(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, quiet=quiet)


class _EscapingConsole(Console):
    """A console where text cannot steer the terminal, whatever names are in it; colours and bars still do."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape before the width is measured, and before the base class drops some of the characters."""
        return super().render_str(escape_controls(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape what did not begin as a string."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)


def run_guarded(function: Callable[[], object], *, debug: bool = False) -> int:
    """Call ``function`` and return the exit code of how it ended.

    A fault of the user is one red line and a remedy on standard error. Everything else that escapes is a bug of ours
    and shows its traceback. What cannot be printed ends nothing: a command that succeeds without its output ends with
    ``LOST_OUTPUT``, unless it has recorded that itself.

    Args:
        function: a whole command; what it returns is ignored, and a ``SystemExit`` keeps its code.
        debug: show the traceback of a user's fault too.
    """
    # A launcher ends all processes once one has ended; what this one has to say is said nevertheless.
    with handled_by(signal.SIG_IGN, REQUEUE), printed_streams() as out:
        code = _guarded(function, debug)
        out.flush()  # a full disk may show only now
        if out.complaint:
            _complain(Text(f"warning: standard output was lost: {out.complaint}", "yellow"))
        return LOST_OUTPUT if out.lost and not (code or out.excused) else code


def _guarded(function: Callable[[], object], debug: bool) -> int:
    try:
        with handled_by(_nothing_to_save, REQUEUE):
            function()
    except Stopped as stopped:
        if own_rank() == 0:
            console(stderr=True).print(str(stopped), soft_wrap=True)
        return stopped.exit_code
    except SystemExit as request:
        return _code_of(request)
    except KeyboardInterrupt:
        _complain(Text("interrupted", "red"))
        return INTERRUPTED
    except LoraDetrError as error:
        if debug:
            _show_traceback()
        if not _told_by_the_first(error):
            _complain(render_error(error))
        return error.exit_code
    except Exception:
        _show_traceback()
        _complain(Text("internal error: this is a bug of lora-detr; please report the lines above", "red"))
        return INTERNAL
    return 0


def _told_by_the_first(error: LoraDetrError) -> bool:
    """Return whether the first process tells of this fault, since all have it.

    Where the end of this process could have a launcher end the first one unheard, this one waits until it is asked to
    end itself: then the first one has told and ended.
    """
    if own_rank() == 0 or not error.on_all_ranks:
        return False
    return stop_requested(within=PATIENCE) if launcher_may_end_first() else True


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    """End with the code of "start it again": a scheduler asks for it, and no run has begun to save its work."""
    raise Stopped(f"stopped on {signal.Signals(number).name}; there was nothing to save")


def render_error(error: LoraDetrError) -> Text:
    """Return the message in red and the remedy below it; square brackets in either stay as they are."""
    message, remedy = (str(error), "") if not error.remedy else (str(error).removesuffix(error.remedy), error.remedy)
    return Text.assemble((escape_controls(message), "red"), escape_controls(remedy))


def _show_traceback() -> None:
    console(stderr=True).print(traceback.format_exc(), end="", soft_wrap=True)


def _complain(text: Text) -> None:
    if own_rank():
        text = Text.assemble(f"rank {own_rank()}: ", text)
    # Not wrapped: a path or a key broken over two lines can be neither copied nor searched for.
    console(stderr=True).print(text, soft_wrap=True)


def _code_of(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code
    _complain(Text(escape_controls(str(request.code)), "red"))
    return INTERNAL
