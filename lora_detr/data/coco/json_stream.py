"""Reading a large JSON file piece by piece, so that neither its text nor its values stand in memory as a whole."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO

PIECE = 1 << 20
"""Bytes read at once; more where a single value is larger."""

# No cut can turn a complete value into an error further from the end of the text than this: -Infinity has 9 letters.
_LONGEST_CUT = 16
# A number may go on behind the text: of `1.5e+3` the parser takes `1.5` if the text ends within the last three.
_LONGEST_EXPONENT = 2

# Places tried as the end of many elements, from behind: one that lies within an element costs a parse.
_TRIES = 8

# A list of numbers cannot hold the colon and the quotes of a key, so this is an outline wherever it stands.
_OUTLINE = re.compile(r'"segmentation"[ \t\n\r]*:[ \t\n\r]*\[[-+.,\d\[\]eE \t\n\r]*\](?=[ \t\n\r]*[,}])')
_SPACES = " \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


class JsonFault(Exception):  # noqa: N818 (a fault of the file; whoever reads it makes an error that names the file)
    """Text that is not JSON.

    Args:
        message: what is wrong.
        line: from 1.
        column: from 1, in characters.
    """

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


class JsonReader:
    """A JSON file, read from front to back. The text in memory is the value that is being parsed, and a piece.

    Args:
        file: open for reading bytes; UTF-8, with or without a byte order mark.
        outlines: whether ``segmentation`` is read where it is a list of numbers. It is most of a COCO file; without
            it reading is several times as fast, but places of faults are off, and faults in it go unseen.
    """

    def __init__(self, file: BinaryIO, *, outlines: bool = True) -> None:
        self._file = file
        self._outlines = outlines
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._place, self._ended = "", 0, False
        self._line, self._column = 1, 0  # of the start of the text

    def __enter__(self) -> JsonReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def peek(self) -> str:
        """Skip white space and return the character behind it, or an empty string at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None
            self._place = space.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if self._ended:
                return ""
            self._extend()

    def value(self) -> Any:
        """Return the value that begins here.

        Raises:
            JsonFault: there is none, or it holds an integer of more digits than Python converts (4,300).
            RecursionError: it is nested too deep.
        """
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                message, at = error.msg, error.pos
            except ValueError:
                raise self._too_long() from None
            else:
                if self._ended or len(self._text) - end > _LONGEST_EXPONENT:
                    self._place = end
                    return value
                at = len(self._text)
            cut = len(self._text) - at <= _LONGEST_CUT or message.startswith("Unterminated string")
            if self._ended or not cut:
                raise self._fault(message, at)
            self._extend()

    def members(self) -> Iterator[str]:
        """Give the keys of the object that begins here; the caller reads the value of each before the next.

        Raises:
            JsonFault: it is not an object, or not a whole one.
        """
        self._take("{", "Expecting value")
        if self.peek() == "}":
            self._place += 1
            return
        while True:
            if self.peek() != '"':
                raise self._fault("Expecting property name enclosed in double quotes", self._place)
            key = self.value()
            self._take(":", "Expecting ':' delimiter")
            yield key
            if self._ends("}"):
                return

    def elements(self) -> Iterator[list[Any]]:
        """Give the elements of the array that begins here, in lists of about as many as are in memory anyway.

        Raises:
            JsonFault: it is not an array, or not a whole one.
        """
        self._take("[", "Expecting value")
        if self.peek() == "]":
            self._place += 1
            return
        while True:
            rows = self._many() or self._each()
            if rows:
                yield rows
            # One that is cut by the end of the text, or the last one.
            yield [self.value()]
            if self._ends("]"):
                return
            self.peek()

    def end(self) -> None:
        """Make sure that nothing follows.

        Raises:
            JsonFault: something does.
        """
        if self.peek():
            raise self._fault("Extra data", self._place)

    def _many(self) -> list[Any]:
        """Return the elements up to a comma between two objects near the end of the text, parsed in one go.

        Nothing is returned where there is no such comma, or where it lies within an element: what stands before it is
        then no list.
        """
        end = len(self._text)
        for _ in range(_TRIES):
            end = self._text.rfind("{", self._place + 1, end)
            if end < 0:
                return []
            before = self._text[self._place : end].rstrip(_SPACES)
            if before.endswith(",") and before[:-1].rstrip(_SPACES).endswith("}"):
                try:
                    rows: list[Any] = self._json.decode(f"[{before[:-1]}]")
                except json.JSONDecodeError:
                    return []
                except ValueError:
                    raise self._too_long() from None
                self._place = end
                return rows
        return []

    def _each(self) -> list[Any]:
        """Return the elements behind which a comma follows within the text, parsed one by one."""
        rows = []
        with contextlib.suppress(ValueError):  # cut or wrong: ``value`` knows
            while True:
                value, end = self._json.raw_decode(self._text, self._place)
                following = _COMMA.match(self._text, end)
                if following is None:
                    break
                rows.append(value)
                self._place = following.end()
        return rows

    def _ends(self, bracket: str) -> bool:
        """Go over a comma and return false, or over the closing bracket and return true."""
        following = self.peek()
        if following not in (",", bracket) or not following:
            raise self._fault("Expecting ',' delimiter", self._place)
        self._place += 1
        return following == bracket

    def _take(self, character: str, message: str) -> None:
        if self.peek() != character:
            raise self._fault(message, self._place)
        self._place += 1

    def _extend(self) -> None:
        """Forget what was parsed and read on: as much as is left or more, so that a large value is parsed few times."""
        self._line, self._column = self._position(self._place)
        self._text, self._place = self._text[self._place :], 0
        data = self._file.read(max(PIECE, len(self._text)))
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, self._ended)
        except UnicodeDecodeError as error:
            wrong = error.object[error.start]
            self._text += error.object[: error.start].decode("utf-8", "ignore")
            raise self._fault(f"byte 0x{wrong:02x} is not UTF-8", len(self._text)) from error
        if not self._outlines:
            self._text = _OUTLINE.sub('"segmentation":0', self._text)

    def _too_long(self) -> JsonFault:
        """Return the fault of an integer that is too long for Python to convert."""
        limit = sys.get_int_max_str_digits()
        number = re.compile(rf"(?<![-+.\w])-?\d{{{limit + 1},}}").search(self._text, self._place)
        return self._fault(f"an integer of more than {limit:,} digits", number.start() if number else self._place)

    def _position(self, place: int) -> tuple[int, int]:
        """Return line from 1 and column from 0 of a place in the text."""
        lines = self._text.count("\n", 0, place)
        if not lines:
            return self._line, self._column + place
        return self._line + lines, place - self._text.rindex("\n", 0, place) - 1

    def _fault(self, message: str, place: int) -> JsonFault:
        line, column = self._position(place)
        return JsonFault(message, line, column + 1)
