"""Data files of every kind, read whole or in pieces: JSON, JSON Lines, Parquet, Arrow, and folders of them.

A file object has `path`, and `prefix`, which distinguishes its places from those of other files of a folder. To read
it whole, `records()` yields (place, record) for each record. To stream it, `blocks(num)` returns ranges (start, stop)
that together cover the file, at least `num` of them if it is long enough, and `read(block)` yields (place, record) for
each record of a block. There `place` is a function, because finding the place may take a while. A place is ":4" for a
line and "[3]" for an element or a row. A record is `tidying.tidied`, and made ours by `columns.finished`. One that
cannot be read becomes a Problem.
"""

import codecs
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qwen_vl.data.validation import DataError

from . import json_files
from .blocks import AS_IT_IS, Block, Placed, Recipe, ranges
from .columns import finished
from .json_lists import elements
from .locating import locate
from .opening import form_of, is_packed, open_bytes
from .table_files import ArrowFile, ParquetFile
from .tidying import tidied

BLOCK_BYTES = 4 * 2**20  # of a text file: large enough to read fast, small enough to shuffle well
PIECE = 2**20
STREAMED = "JSON Lines (.jsonl), a JSON list, Parquet (.parquet) or Arrow (.arrow)"


def open_files(path: str | os.PathLike) -> list["StreamedFile"]:
    """Return the file objects of a path for streaming. Raise DataError if one cannot be streamed, OSError."""
    found = locate(path)
    return [_open_streamed(file, prefix, Recipe(found.base, found.columns)) for file, prefix in found.files]


def _open_streamed(path: Path, prefix: str, recipe: Recipe) -> "StreamedFile":
    form = form_of(path)
    if form != "text":
        return TABLES[form](path, prefix, recipe)
    with open_bytes(path) as file:
        start = file.read(PIECE).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise DataError(f"{path}: empty; give one conversation on each line")
    is_named_lines = json_files.is_named_lines(path)
    if start.startswith(b"[") and is_named_lines:  # a list, or lines that are no records
        raise DataError(
            f"{path}: a JSON list cannot be streamed as JSON Lines; write one record on each line, or call it .json"
        )
    if start.startswith(b"["):
        return ListFile(path, prefix, recipe)
    if not is_named_lines and not json_files.begins_with_an_object(path):
        raise DataError(f"{path}: cannot be streamed; give {STREAMED}")
    return (PackedLines if is_packed(path) else LineFile)(path, prefix, recipe)


def open_whole(path: str | os.PathLike) -> Iterator["WholeFile"]:
    """Yield the file objects of a path for reading whole files. Raise DataError or OSError if one is unusable."""
    found = locate(path)
    recipe = Recipe(found.base, found.columns)
    for file, prefix in found.files:
        form = form_of(file)
        yield TextFile(file, prefix, recipe) if form == "text" else TABLES[form](file, prefix, recipe)


# ---- text -----------------------------------------------------------------------------------------------------------


class TextFile:
    """A JSON list or JSON Lines, packed or not, read as a whole."""

    columns = None

    def __init__(self, path: Path, prefix: str = "", recipe: Recipe = AS_IT_IS) -> None:
        self.path, self.prefix, self.recipe = path, prefix, recipe

    def records(self, *, is_ours: bool = True) -> Iterator[tuple[str, object]]:
        columns = self.recipe.columns if is_ours else None
        for place, record in json_files.records(self.path):
            yield place, finished(tidied(record), columns)


class LineFile:
    """A JSON Lines file; blocks are ranges of bytes, and a line belongs to the block in which it begins."""

    columns = None

    def __init__(self, path: Path, prefix: str = "", recipe: Recipe = AS_IT_IS) -> None:
        self.path, self.prefix, self.recipe, self.size = path, prefix, recipe, path.stat().st_size
        self._counted = {1: 0}  # position -> number of line ends before it

    def blocks(self, num: int) -> list[Block]:
        return ranges(self.size, BLOCK_BYTES, num)

    def read(self, block: Block) -> Iterator[Placed]:
        start, stop = block
        with open(self.path, "rb") as file:
            position = start
            if start:  # a line that began in the previous block belongs to it
                file.seek(start - 1)
                position += len(file.readline()) - 1
            for index, line in enumerate(file):
                if position >= stop:
                    return
                if line.strip():
                    yield partial(self._place, start, index), _record_of(line, self.recipe, is_first=position == 0)
                position += len(line)

    def _place(self, start: int, index: int) -> str:
        """Return the place of a line. Line ends before the block are counted once, from the nearest known position."""
        if start == 0:
            return f":{index + 1}"
        known = max(position for position in self._counted if position <= start)
        count = self._counted[known]
        with open(self.path, "rb") as file:
            file.seek(known - 1)
            for position in range(known, start, PIECE):
                count += file.read(min(PIECE, start - position)).count(b"\n")
        self._counted[start] = count
        return f":{count + index + 2}"


class _OneBlock:
    """A file that can only be read from its start, so it is one block."""

    columns = None

    def __init__(self, path: Path, prefix: str = "", recipe: Recipe = AS_IT_IS) -> None:
        self.path, self.prefix, self.recipe, self.size = path, prefix, recipe, path.stat().st_size

    def blocks(self, num: int) -> list[Block]:
        return [(0, self.size)]


class PackedLines(_OneBlock):
    """A JSON Lines file in gzip or zstd."""

    def read(self, block: Block) -> Iterator[Placed]:
        with open_bytes(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield partial(":{}".format, number), _record_of(line, self.recipe, is_first=number == 1)


class ListFile(_OneBlock):
    """A JSON list, packed or not, read element by element, so it need not fit in memory."""

    def read(self, block: Block) -> Iterator[Placed]:
        for index, record in enumerate(elements(self.path)):
            yield partial("[{}]".format, index), finished(tidied(record), self.recipe.columns)


def _record_of(line: bytes, recipe: Recipe, *, is_first: bool) -> object:
    return finished(tidied(json_files.parsed_line(line, "", is_first=is_first)), recipe.columns)


TABLES: dict[str, type[ParquetFile] | type[ArrowFile]] = {"parquet": ParquetFile, "arrow": ArrowFile}
WholeFile = TextFile | ParquetFile | ArrowFile
StreamedFile = LineFile | PackedLines | ListFile | ParquetFile | ArrowFile
DataFile = WholeFile | StreamedFile
