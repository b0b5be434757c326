"""JSON lists that are read element by element, so they need not fit in memory."""

import io
import json
import os
import re
from collections.abc import Iterator
from typing import TextIO

from qwen_vl.data.validation import DataError

from .json_files import cause_of
from .opening import open_bytes

PIECE = 2**20  # characters that are read at a time
TAIL = 12  # characters before the end of the buffer in which an error, or the end of a number, may be only a cut
SPACE = re.compile(r"[ \t\n\r]*")


def skip_space(text: str, position: int) -> int:
    """Return the position of the first character from `position` on that is not JSON white space."""
    match = SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty text"
    return match.end()


def elements(path: str | os.PathLike) -> Iterator[object]:
    """Yield the elements of a JSON list while reading it. Raise DataError if it is empty, or when it is not JSON."""
    with open_bytes(path) as file:
        pieces = _Pieces(io.TextIOWrapper(file, encoding="utf-8-sig"))
        try:
            pieces.take("[")
            if pieces.char() == "]":
                raise DataError(f"{path}: an empty list; give at least one conversation")
            closing = ","
            while closing == ",":
                yield pieces.value()
                closing = pieces.take(",]")
            if pieces.char():
                raise pieces.error("Extra data")
        except json.JSONDecodeError as error:
            found = f"not JSON at line {pieces.line_of(error)} ({cause_of(error, is_line=True) or error.msg})"
            raise DataError(f"{path}: {found}; correct it there, or write the file with json.dump") from None
        except (UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not JSON in UTF-8 that can be read ({error}); save it as UTF-8") from None


class _Pieces:
    """A JSON text that is read in pieces. Characters and values are taken from its front."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._buffer, self._position, self._num_lines = text, "", 0, 0
        self._scan = json.JSONDecoder().raw_decode

    def char(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            self._position = skip_space(self._buffer, self._position)
            if self._position < len(self._buffer) or not self._more():
                return self._buffer[self._position : self._position + 1]

    def take(self, wanted: str) -> str:
        """Return the next character and move past it. Raise JSONDecodeError if it is not in `wanted`."""
        char = self.char()
        if not char or char not in wanted:
            raise self.error(f"Expecting {wanted[0]!r} delimiter")
        self._position += 1
        return char

    def value(self) -> object:
        """Return the next value and move past it."""
        self.char()
        while True:
            try:
                value, end = self._scan(self._buffer, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._buffer) - TAIL or error.msg.startswith("Unterminated")
                if is_cut and self._more():
                    continue
                raise
            if end >= len(self._buffer) - TAIL and self._more():  # a number may continue
                continue
            self._position = end
            return value

    def error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._buffer, self._position)

    def line_of(self, error: json.JSONDecodeError) -> int:
        """Return the line of the whole text in which an error lies."""
        return self._num_lines + self._buffer.count("\n", 0, error.pos) + 1

    def _more(self) -> bool:
        """Read at least as much again as is in the buffer, and drop what was taken. Return False at the end."""
        piece = self._text.read(max(PIECE, len(self._buffer) - self._position))
        if not piece:
            return False
        self._num_lines += self._buffer.count("\n", 0, self._position)
        self._buffer, self._position = self._buffer[self._position :] + piece, 0
        return True
