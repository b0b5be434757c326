"""Tables of text with tabs between the columns, read row by row, and single cells of them read again.

Cells with images are megabytes long, so no cell is kept: a row says where it begins in the file.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of this process; the default, 131,072, is less than an image needs


class Row(NamedTuple):
    """A row of a table: the line where it begins, from 1 on, its offset in bytes, and its cells by column."""

    line: int
    offset: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table and its columns. The name of a column that the file does not name is ""."""

    path: Path
    columns: tuple[str, ...]
    separator: str
    start: int  # offset of the first row, in bytes

    @classmethod
    def open(cls, path: Path) -> "Table":
        """Return the table of a UTF-8 file; raise ValueError for another encoding or a bad header, OSError."""
        with open(path, "rb") as file:
            begin = file.read(3)
            if begin.startswith(UTF16_MARKS):
                raise ValueError(f"{path}: is UTF-16; save it as UTF-8 text with tabs between the columns")
            start = len(UTF8_MARK) if begin == UTF8_MARK else 0
            file.seek(start)
            separator = "\t" if b"\t" in file.readline() else ","
            file.seek(start)
            lines = _Lines(path, file, start)
            columns = tuple(name.strip() for name in next(_cells(path, lines, separator, 1), (1, []))[1])
        twice = [name for name, count in Counter(columns).items() if name and count > 1]
        if not any(columns):
            raise ValueError(f"{path}:1: no names of columns; the first line must have them, such as index, image")
        if twice:
            raise ValueError(f"{path}:1: two columns {twice[0]!r}; rename or remove one")
        return cls(path, columns, separator, lines.offset)

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are not empty. Raise ValueError for one with too many or too few cells.

        A spreadsheet leaves out empty cells at the end of a row, so only a short row at the very end is taken as cut.
        """
        with open(self.path, "rb") as file:
            file.seek(self.start)
            first_line = self._num_header_lines() + 1
            lines, offset = _Lines(self.path, file, self.start, first_line), self.start
            for line, cells in _cells(self.path, lines, self.separator, first_line):
                if any(cell.strip() for cell in cells):
                    self._check_length(line, cells, lines)
                    filled = cells[: len(self.columns)] + [""] * (len(self.columns) - len(cells))
                    yield Row(line, offset, dict(zip(self.columns, filled, strict=True)))
                offset = lines.offset

    def cell(self, offset: int, column: str) -> str:
        """Return a cell of the row that begins at `offset`; raise OSError if the file is shorter by now."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            _, cells = next(_cells(self.path, _Lines(self.path, file, offset), self.separator, 0), (0, []))
        place = self.columns.index(column)
        if place >= len(cells):
            raise OSError(f"{self.path} is not the file any more that was read at the start")
        return cells[place]

    def _num_header_lines(self) -> int:
        with open(self.path, "rb") as file:
            return file.read(self.start).count(b"\n") or 1

    def _check_length(self, line: int, cells: list[str], lines: "_Lines") -> None:
        num, wanted = len(cells), len(self.columns)
        if num > wanted and any(cells[wanted:]):
            raise ValueError(
                f"{self.path}:{line}: {num} cells, but the first line names {wanted} columns; a cell with a tab or a "
                "newline must stand in double quotes"
            )
        if num < wanted and lines.is_at_end() and (not lines.is_ended or sum(cell.count("\n") for cell in cells) > 0):
            raise ValueError(
                f"{self.path}:{line}: only {num} of {wanted} cells, up to the end of the file: the file is cut, or a "
                "double quote is not closed; get it again"
            )


class _Lines:
    """The lines of an open file as text, and the offset of the next one."""

    def __init__(self, path: Path, file: BufferedReader, offset: int, line: int = 1) -> None:
        self.path, self.file, self.offset, self.line = path, file, offset, line
        self.is_ended = True  # whether the last line ended with a newline

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}:{self.line}: byte {error.start} is not UTF-8; save the file as UTF-8 text"
            ) from error
        self.offset += len(line)
        self.line += 1
        self.is_ended = line.endswith(b"\n")
        return text

    def is_at_end(self) -> bool:
        """Return whether there is no further line."""
        return not self.file.peek(1)


def _cells(path: Path, lines: _Lines, separator: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it begins, cells) of each row, empty ones too; raise ValueError if one cannot be split."""
    reader = csv.reader(lines, delimiter=separator)
    while True:
        line = first_line + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{path}:{line}: cannot be split into cells ({error}); save it with newlines at the ends of the rows"
            ) from error
        yield line, cells
