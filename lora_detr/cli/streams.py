"""Standard output and standard error that end no command: what cannot be printed is escaped or given up.

A reader that goes away, a closed stream or a full disk behind it takes away what is shown, never the work.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

LOST_OUTPUT = 141  # as shells have it for a command whose reader has gone: 128 and the number of SIGPIPE

_QUIET = (errno.EPIPE, errno.EBADF)
"""Reasons that the user chose: the reader has ended, or the stream was closed from the start."""

_PLAIN = str.maketrans({"…": "..."})
"""For encodings without the sign that cuts a cell of a table short; lines are drawn with what the encoding has."""


class PrintedStream:
    """A text stream whose writes never fail.

    Attributes:
        lost: why the stream is gone, as the system has it; empty while it is not. From then on nothing is written.
        excused: whether the command keeps its usual exit code although the stream is gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.lost = ""
        self.excused = False
        self._number = 0

    def write(self, text: str) -> int:
        """Write a text; characters that the encoding lacks are escaped."""
        if self._stream is None:
            self._lose(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        elif not self.lost:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError) as error:  # a closed file is a ValueError
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what is held back."""
        if self._stream is not None and not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    @property
    def complaint(self) -> str:
        """Why the stream is gone, where the user did not ask for it."""
        return "" if self._number in _QUIET else self.lost

    @property
    def encoding(self) -> str:
        """That of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return self._stream is not None and not self.lost and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream below."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        """Return true."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            drawn = text if self.encoding.lower().startswith("utf") else text.translate(_PLAIN)
            return drawn.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def _lose(self, error: OSError | ValueError) -> None:
        if self.lost:
            return
        self._number = getattr(error, "errno", None) or errno.EBADF
        self.lost = os.strerror(self._number)
        # What is held back goes nowhere from now on; it would fail once more when the interpreter ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = self.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            self._stream.flush()  # type: ignore[union-attr]


_outputs: list[PrintedStream] = []
"""Standard output of the running command; ``sys.stdout`` may be covered by a progress bar."""


@contextlib.contextmanager
def printed_streams() -> Iterator[PrintedStream]:
    """Have standard output and standard error never fail, and give standard output."""
    _keep_numbers()
    before = sys.stdout, sys.stderr
    out, err = PrintedStream(sys.stdout), PrintedStream(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    _outputs.append(out)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        _outputs.remove(out)
        sys.stdout, sys.stderr = before


def lost_output() -> str:
    """Return why the standard output of the running command is gone, or an empty text while it is not."""
    return _outputs[-1].lost if _outputs else ""


def excuse_lost_output() -> None:
    """Let the running command keep its usual exit code: it has recorded itself that its output was lost."""
    for out in _outputs:
        out.excused = True


def _keep_numbers() -> None:
    """Occupy standard descriptors that are closed: a file that got one of them would receive what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(opened, number)
                os.close(opened)
