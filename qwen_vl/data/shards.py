"""Files that are read in pieces: JSON Lines by bytes, Parquet by row groups, Arrow by record batches.

A file object has `path`; `blocks(num)`, ranges (start, stop) that together cover the file, at least `num` of them if it
is long enough; and `read(block)`, which yields (place, record) for each record of a block. `place` is a function that
gives where the record stands in the file, ":4" for a line and "[3]" for a row: to know it may take a while.
"""

import codecs
import json
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from .validation import DataError

BLOCK_BYTES = 4 * 2**20  # of a text file: enough to be read quickly, few enough to be shuffled well
BLOCK_ROWS = 4096
BATCH_ROWS = 256  # rows that become Python objects at a time
PIECE = 2**20


def open_files(path):
    """The file objects of a path: one for a file, one for each data file in a folder; DataError for another kind."""
    path = Path(path)
    if not path.is_dir():
        return [_open(path)]
    found = sorted(file for file in path.rglob("*") if file.suffix in KINDS)
    if not found:
        raise DataError(f"{path}: no file named {', '.join('*' + suffix for suffix in KINDS)} in this folder")
    return [_open(file) for file in found]


def _open(path):
    if path.suffix not in KINDS:
        raise DataError(f"{path}: cannot be streamed; give JSON Lines (.jsonl), Parquet (.parquet) or Arrow (.arrow)")
    return KINDS[path.suffix](path)


class LineFile:
    """A JSON Lines file; blocks are ranges of bytes, and a line belongs to the block in which it begins."""

    def __init__(self, path):
        self.path, self.size = path, path.stat().st_size
        self._counted = {1: 0}  # position -> number of line ends before it
        with open(path, "rb") as file:
            start = file.read(PIECE).removeprefix(codecs.BOM_UTF8).lstrip()
        if not start:
            raise DataError(f"{path}: empty; give one conversation on each line")
        if start.startswith(b"["):
            raise DataError(f"{path}: a JSON list cannot be streamed; write one conversation on each line instead")

    def blocks(self, num):
        return _ranges(self.size, BLOCK_BYTES, num)

    def read(self, block):
        start, stop = block
        with open(self.path, "rb") as file:
            position = start
            if start:  # what began in the block before belongs to it
                file.seek(start - 1)
                position += len(file.readline()) - 1
            for index, line in enumerate(file):
                if position >= stop:
                    return
                if line.strip():
                    place = partial(self._place, start, index)
                    yield place, self._parse(line, place, is_first=position == 0)
                position += len(line)

    def _parse(self, line, place, *, is_first):
        try:
            return json.loads(line.decode("utf-8-sig" if is_first else "utf-8"))
        except UnicodeDecodeError as error:
            found = f"not UTF-8 (0x{line[error.start]:02x} at byte {error.start} of the line); save the file as UTF-8"
        except (ValueError, RecursionError) as error:
            found = f"not JSON ({error}); write one whole record on each line"
        raise DataError(f"{self.path}{place()}: {found}")

    def _place(self, start, index):
        """The line number: line ends before the block are counted once, from the nearest place that is known."""
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


class ParquetFile:
    """A Parquet file; blocks are ranges of rows, whole row groups unless these are too few."""

    def __init__(self, path):
        self.path = path
        try:
            metadata = parquet.read_metadata(path)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: not Parquet ({error})") from None
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [sum(groups[:index]) for index in range(len(groups) + 1)]

    def blocks(self, num):
        parts = -(-num // max(len(self._starts) - 1, 1))
        groups = zip(self._starts, self._starts[1:], strict=False)
        return [(first + a, first + b) for first, end in groups for a, b in _ranges(end - first, end - first, parts)]

    def read(self, block):
        start, stop = block
        group = max(index for index, first in enumerate(self._starts[:-1]) if first <= start)
        row = self._starts[group]
        with parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                if row + batch.num_rows > start:
                    yield from _rows(batch.slice(max(start - row, 0), stop - max(start, row)), max(start, row))
                row += batch.num_rows
                if row >= stop:
                    return


class ArrowFile:
    """An Arrow file or stream, as `datasets` writes; mapped into memory, blocks are ranges of rows."""

    def __init__(self, path):
        self.path = path
        self._num_rows = sum(batch.num_rows for batch in self._batches)

    def __getstate__(self):
        return {"path": self.path, "_num_rows": self._num_rows}  # a spawned worker maps the file itself

    @cached_property
    def _batches(self):
        try:
            mapped = pa.memory_map(str(self.path))
            if mapped.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(mapped)
                return [reader.get_batch(index) for index in range(reader.num_record_batches)]
            mapped.seek(0)
            return list(pa.ipc.open_stream(mapped))
        except pa.ArrowInvalid as error:
            raise DataError(f"{self.path}: not Arrow ({error})") from None

    def blocks(self, num):
        return _ranges(self._num_rows, BLOCK_ROWS, num)

    def read(self, block):
        (start, stop), row = block, 0
        for batch in self._batches:
            end = row + batch.num_rows
            for first in range(max(start, row), min(stop, end), BATCH_ROWS):
                yield from _rows(batch.slice(first - row, min(BATCH_ROWS, stop - first)), first)
            row = end


KINDS = {".jsonl": LineFile, ".parquet": ParquetFile, ".arrow": ArrowFile}


def _ranges(total, size, num):
    """Ranges that cover 0..total, none longer than `size`, at least `num` of them where the total allows."""
    size = max(1, min(size, -(-total // num)))
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _rows(batch, first):
    """(place, record) for each row of a batch; a column without a value is a key that is not there."""
    for row, record in enumerate(batch.to_pylist(), start=first):
        record = {key: value for key, value in record.items() if value is not None}
        turns = record.get("conversations")
        if isinstance(turns, list):
            record["conversations"] = [
                {key: value for key, value in turn.items() if value is not None} if isinstance(turn, dict) else turn
                for turn in turns
            ]
        yield partial("[{}]".format, row), record
