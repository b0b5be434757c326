"""Data files of every kind, read whole or in pieces: JSON, JSON Lines, Parquet, Arrow, and folders of them.

A file object has `path`, and `prefix`, which distinguishes its places from those of other files of a folder. To read
it whole, `records()` yields (place, record) for each record. To stream it, `blocks(num)` returns ranges (start, stop)
that together cover the file, at least `num` of them if it is long enough, and `read(block)` yields (place, record) for
each record of a block. There `place` is a function, because finding the place may take a while. A place is ":4" for a
line and "[3]" for an element or a row. A record is `tidying.tidied`. One that cannot be read becomes a Problem.
"""

import codecs
import errno
import glob
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from qwen_vl.data import path_hints
from qwen_vl.data.validation import DataError, Problem

from . import json_files
from .json_lists import elements
from .opening import form_of, is_packed, open_bytes, plain_name
from .tidying import decoder, tidied

logger = logging.getLogger(__name__)

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow
BLOCK_BYTES = 4 * 2**20  # of a text file: large enough to read fast, small enough to shuffle well
BLOCK_ROWS = 4096
BATCH_ROWS = 256  # rows that become Python objects at a time
PIECE = 2**20
SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow")  # files to read in a folder; .json if there are none
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?:-[0-9]+-of-[0-9]+[^/]*)?\.")  # as hubs name their files
STREAMED = "JSON Lines (.jsonl), a JSON list, Parquet (.parquet) or Arrow (.arrow)"

Block = tuple[int, int]
Placed = tuple[Callable[[], str], object]


# ---- which files ----------------------------------------------------------------------------------------------------


def data_files(path: str | os.PathLike) -> list[tuple[Path, str]]:
    """Return [(file, prefix of its places), ..] of a path: a file, a folder, a saved `datasets` folder, a pattern.

    The prefix of a file alone is "", of others "/NAME". Raise DataError if a folder has no data files or several
    splits, FileNotFoundError, with a hint on what may be wrong, if there is no such path.
    """
    path = Path(path)
    if path.is_dir():
        return [(file, f"/{file.relative_to(path).as_posix()}") for file in _in_folder(path)]
    found = [] if path.exists() else sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
    if found:
        fixed = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        return [(Path(name), "/" + "/".join(Path(name).parts[fixed:])) for name in found]
    if not path.exists():
        hint = path_hints.hint(str(path), os.path.exists)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT) + hint, str(path))
    return [(path, "")]


def is_among(out: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Return whether a file that is to be written would lie in a folder of data files."""
    return os.path.isdir(path) and Path(out).resolve().is_relative_to(Path(path).resolve())


def _in_folder(path: Path) -> list[Path]:
    """Return the data files of a folder, in order."""
    if (path / "state.json").is_file():
        return _of_dataset(path)
    saved = sorted(state.parent for state in path.glob("*/state.json"))
    if saved:
        raise _splits(path, [folder.name for folder in saved], saved[-1])
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    for suffixes in (SUFFIXES, (".json",)):
        found = [file for file in files if plain_name(file).suffix.lower() in suffixes]
        named = {match[1]: file for file in found if (match := SPLIT.match(file.name))}
        if len(named) > 1:
            name, file = max(named.items())
            raise _splits(path, sorted(named), file.with_name(f"{name}*{''.join(file.suffixes)}"))
        if found:
            return found
    patterns = ", ".join(f"*{suffix}" for suffix in (*SUFFIXES, ".json"))
    raise DataError(f"{path}: no file named {patterns} in this folder")


def _splits(path: Path, names: list[str], example: Path) -> DataError:
    return DataError(f"{path}: holds the splits {', '.join(names)}; name one of them, such as {str(example)!r}")


def _of_dataset(path: Path) -> list[Path]:
    """Return the files of a folder that `save_to_disk` of `datasets` wrote. Other files there are its caches."""
    state: Any = json_files.read_json(path / "state.json")  # any JSON value; what is no saved data set raises below
    try:
        files = [path / entry["filename"] for entry in state["_data_files"]]
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(f"{path}: a selection from a larger data set; call flatten_indices() and save it again")
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path / 'state.json'}: not that of a saved data set; save it again") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path}: {', '.join(missing)} of the saved data set missing; copy or save it again")
    return files


def open_files(path: str | os.PathLike) -> list["StreamedFile"]:
    """Return the file objects of a path for streaming. Raise DataError if one cannot be streamed, OSError."""
    return [_open_streamed(file, prefix) for file, prefix in data_files(path)]


def _open_streamed(path: Path, prefix: str) -> "StreamedFile":
    form = form_of(path)
    if form != "text":
        return TABLES[form](path, prefix)
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
        return ListFile(path, prefix)
    if not is_named_lines and not json_files.begins_with_an_object(path):
        raise DataError(f"{path}: cannot be streamed; give {STREAMED}")
    return PackedLines(path, prefix) if is_packed(path) else LineFile(path, prefix)


def open_whole(path: str | os.PathLike) -> Iterator["WholeFile"]:
    """Yield the file objects of a path for reading whole files. Raise DataError or OSError if one is unusable."""
    for file, prefix in data_files(path):
        form = form_of(file)
        yield TextFile(file, prefix) if form == "text" else TABLES[form](file, prefix)


# ---- text -----------------------------------------------------------------------------------------------------------


class TextFile:
    """A JSON list or JSON Lines, packed or not, read as a whole."""

    columns = None

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix

    def records(self) -> Iterator[tuple[str, object]]:
        for place, record in json_files.records(self.path):
            yield place, tidied(record)


class LineFile:
    """A JSON Lines file; blocks are ranges of bytes, and a line belongs to the block in which it begins."""

    columns = None

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix, self.size = path, prefix, path.stat().st_size
        self._counted = {1: 0}  # position -> number of line ends before it

    def blocks(self, num: int) -> list[Block]:
        return _ranges(self.size, BLOCK_BYTES, num)

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
                    yield partial(self._place, start, index), _record_of(line, is_first=position == 0)
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

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix, self.size = path, prefix, path.stat().st_size

    def blocks(self, num: int) -> list[Block]:
        return [(0, self.size)]


class PackedLines(_OneBlock):
    """A JSON Lines file in gzip or zstd."""

    def read(self, block: Block) -> Iterator[Placed]:
        with open_bytes(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield partial(":{}".format, number), _record_of(line, is_first=number == 1)


class ListFile(_OneBlock):
    """A JSON list, packed or not, read element by element, so it need not fit in memory."""

    def read(self, block: Block) -> Iterator[Placed]:
        for index, record in enumerate(elements(self.path)):
            yield partial("[{}]".format, index), tidied(record)


def _record_of(line: bytes, *, is_first: bool) -> object:
    return tidied(json_files.parsed_line(line, "", is_first=is_first))


# ---- tables ---------------------------------------------------------------------------------------------------------


class Table(ABC):
    """A Parquet or Arrow file. `columns` are the names of its columns."""

    KIND: tuple[str, tuple[bytes, ...]]  # its name, and the first bytes of such a file
    path: Path
    columns: list[str]
    num_rows: int

    @abstractmethod
    def table(self) -> pa.Table:
        """Return all rows as they are in the file."""

    @abstractmethod
    def blocks(self, num: int) -> list[Block]:
        """Return ranges of rows."""

    @abstractmethod
    def read(self, block: Block) -> Iterator[Placed]:
        """Yield the records of a range of rows."""

    def records(self) -> Iterator[tuple[str, object]]:
        for block in self.blocks(1):
            for place, record in self.read(block):
                yield place(), record

    @contextmanager
    def _reading(self, row: int | None = None) -> Iterator[None]:
        """Raise DataError if pyarrow raises an error in the block. row: the first row that the block reads."""
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            kind, (magic, *others) = self.KIND
            reason = str(error).strip().split("\n")[0].rstrip(".")
            with open(self.path, "rb") as file:
                is_one = file.read(len(magic)).startswith((magic, *others))
            found = f"damaged or cut short {kind}" if is_one else f"not {kind}"
            place = "" if row is None else f"from row {row} on: "
            raise DataError(f"{self.path}: {place}{found} ({reason}); get or write the file again") from None


class ParquetFile(Table):
    """A Parquet file; blocks are ranges of rows, whole row groups unless these are too few."""

    KIND = "Parquet", (b"PAR1",)

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        with self._reading():
            metadata = parquet.read_metadata(path)
            self.columns = metadata.schema.to_arrow_schema().names
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [sum(groups[:index]) for index in range(len(groups) + 1)]
        self.num_rows = self._starts[-1]

    def table(self) -> pa.Table:
        with self._reading():
            return parquet.read_table(self.path)

    def blocks(self, num: int) -> list[Block]:
        parts = -(-num // max(len(self._starts) - 1, 1))
        groups = zip(self._starts, self._starts[1:], strict=False)
        return [(first + a, first + b) for first, end in groups for a, b in _ranges(end - first, end - first, parts)]

    def read(self, block: Block) -> Iterator[Placed]:
        start, stop = block
        group = max(index for index, first in enumerate(self._starts[:-1]) if first <= start)
        row = self._starts[group]
        with self._reading(start), parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                if row + batch.num_rows > start:
                    yield from _rows(batch.slice(max(start - row, 0), stop - max(start, row)), max(start, row))
                row += batch.num_rows
                if row >= stop:
                    return


class ArrowFile(Table):
    """An Arrow file or stream, as `datasets` writes; mapped into memory, blocks are ranges of rows."""

    KIND = "Arrow", (b"ARROW1", b"\xff\xff\xff\xff")

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        with self._reading():
            self.columns = self._table.schema.names
        self.num_rows = self._table.num_rows

    def __getstate__(self) -> dict[str, object]:  # a spawned worker maps the file itself
        return {name: value for name, value in vars(self).items() if name != "_table"}

    @cached_property
    def _table(self) -> pa.Table:
        mapped = pa.memory_map(str(self.path))
        if mapped.read(6) == b"ARROW1":
            return pa.ipc.open_file(mapped).read_all()
        mapped.seek(0)
        table = pa.ipc.open_stream(mapped).read_all()
        mapped.seek(max(0, mapped.size() - len(END_OF_STREAM)))
        if mapped.read() != END_OF_STREAM:  # the format allows this, but writers add the mark
            logger.warning("%s: this stream of Arrow has no end mark; was it written to its end?", self.path)
        return table

    def table(self) -> pa.Table:
        return self._table

    def blocks(self, num: int) -> list[Block]:
        return _ranges(self.num_rows, BLOCK_ROWS, num)

    def read(self, block: Block) -> Iterator[Placed]:
        (start, stop), row = block, 0
        with self._reading(start):
            for batch in self._table.to_batches():
                end = row + batch.num_rows
                for first in range(max(start, row), min(stop, end), BATCH_ROWS):
                    yield from _rows(batch.slice(first - row, min(BATCH_ROWS, stop - first)), first)
                row = end


TABLES: dict[str, type[ParquetFile] | type[ArrowFile]] = {"parquet": ParquetFile, "arrow": ArrowFile}
WholeFile = TextFile | ParquetFile | ArrowFile
StreamedFile = LineFile | PackedLines | ListFile | ParquetFile | ArrowFile
DataFile = WholeFile | StreamedFile


def _ranges(total: int, size: int, num: int) -> list[Block]:
    """Return ranges that cover 0..total, none longer than `size`, at least `num` of them if the total allows."""
    size = max(1, min(size, -(-total // num)))
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _rows(batch: pa.RecordBatch, first: int) -> Iterator[Placed]:
    """Yield (place, record) for each row of a batch."""
    batch.validate(full=True)  # a damaged offset would let the process read beyond the file
    decode = decoder(pa.struct(list(batch.schema))) or (lambda record: record)
    for row, record in enumerate(batch.to_pylist(), start=first):
        try:
            record = tidied(decode(record))
        except (ValueError, RecursionError) as error:  # of a column of JSON text
            message = f"a column of JSON holds what is none: {json_files.json_error(error)}; write it with json.dumps"
            record = Problem("", None, "", "broken JSON", message)
        yield partial("[{}]".format, row), record
