"""Parquet and Arrow files: rows as records, images left in their cells and named by them.

`readers` says what a file object is.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from qwen_vl.data import image_files
from qwen_vl.data.validation import DataError, Problem

from . import cells, json_files
from .blocks import AS_IT_IS, Block, Placed, Recipe, ranges
from .columns import IMAGE_COLUMNS, finished
from .tidying import decoder, tidied

logger = logging.getLogger(__name__)

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow
BLOCK_ROWS = 4096
BATCH_ROWS = 256  # rows that become Python objects at a time
LARGE_GROUP = 64 * 2**20  # bytes: with larger row groups, opening an image takes longer than decoding it


class Table(ABC):
    """A Parquet or Arrow file. `columns` are the names of its columns."""

    KIND: tuple[str, tuple[bytes, ...]]  # its name, and the first bytes of such a file
    path: Path
    prefix: str
    columns: list[str]
    num_rows: int
    recipe: Recipe
    image_columns: list[str]
    wanted_images: list[str]

    def open(self, path: Path, prefix: str, recipe: Recipe, schema: pa.Schema) -> None:
        """Set what both kinds have. schema: of the columns."""
        self.path, self.prefix, self.recipe = path, prefix, recipe
        self.columns = schema.names
        wanted = IMAGE_COLUMNS if recipe.columns is None else recipe.columns.images
        found = [field for field in schema if cells.is_image(field.type)]
        self.image_columns = [field.name for field in found if field.name in wanted or cells.has_path(field.type)]
        self.wanted_images = [name for name in self.image_columns if name in wanted]  # these go into the records
        base = os.path.abspath(path)
        is_below = recipe.base and Path(base).is_relative_to(recipe.base)
        self._name = os.path.relpath(base, recipe.base) if is_below else base

    @abstractmethod
    def table(self) -> pa.Table:
        """Return all rows as they are in the file."""

    @abstractmethod
    def blocks(self, num: int) -> list[Block]:
        """Return ranges of rows."""

    @abstractmethod
    def batches(self, block: Block, *, is_ours: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, batch) of a range of rows. is_ours: images may be left out, their columns stay."""

    def read(self, block: Block, *, is_ours: bool = True) -> Iterator[Placed]:
        """Yield the records of a range of rows. is_ours: as records of ours, with images named by their cells."""
        for first, batch in self.batches(block, is_ours=is_ours):
            yield from self._rows(batch, first, is_ours=is_ours)

    def records(self, *, is_ours: bool = True) -> Iterator[tuple[str, object]]:
        for block in self.blocks(1):
            for place, record in self.read(block, is_ours=is_ours):
                yield place(), record

    def _rows(self, batch: pa.RecordBatch, first: int, *, is_ours: bool) -> Iterator[Placed]:
        """Yield (place, record) for each row of a batch."""
        named = {name: self._references(batch, name, first) for name in self.wanted_images} if is_ours else {}
        if is_ours:
            batch = batch.drop_columns([name for name in self.image_columns if name in batch.schema.names])
        batch.validate(full=True)  # a damaged offset would let the process read beyond the file
        decode = decoder(pa.struct(list(batch.schema))) or (lambda record: record)
        for index, record in enumerate(batch.to_pylist()):
            try:
                record = tidied(decode(record))
                if is_ours and isinstance(record, dict):
                    record |= {name: references[index] for name, references in named.items()}
                    record = finished(record, self.recipe.columns, self.wanted_images)
            except (ValueError, RecursionError) as error:  # of a column of JSON text
                said = json_files.json_error(error)
                message = f"a column of JSON holds what is none: {said}; write it with json.dumps"
                record = Problem("", None, "", "broken JSON", message)
            yield partial("[{}]".format, first + index), record

    def _references(self, batch: pa.RecordBatch, column: str, first: int) -> list[list[str]]:
        """Return, for each row of a batch, the references of the images that a column holds."""
        found = enumerate(present(batch.column(column)), start=first)
        return [[str(image_files.Cell(self._name, row, column, index)) for index in there] for row, there in found]

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

    def __init__(self, path: Path, prefix: str = "", recipe: Recipe = AS_IT_IS) -> None:
        self.path = path
        with self._reading():
            metadata = parquet.read_metadata(path)
            self.open(path, prefix, recipe, metadata.schema.to_arrow_schema())
            self._leaves = [metadata.schema.column(index).path for index in range(len(metadata.schema))]
        self._warn_of_large_groups(metadata)
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [sum(groups[:index]) for index in range(len(groups) + 1)]
        self.num_rows = self._starts[-1]

    def table(self) -> pa.Table:
        with self._reading():
            return parquet.read_table(self.path)

    def blocks(self, num: int) -> list[Block]:
        parts = -(-num // max(len(self._starts) - 1, 1))
        groups = zip(self._starts, self._starts[1:], strict=False)
        return [(first + a, first + b) for first, end in groups for a, b in ranges(end - first, end - first, parts)]

    def batches(self, block: Block, *, is_ours: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        start, stop = block
        leaves = self._light_leaves() if is_ours else None
        group = max(index for index, first in enumerate(self._starts[:-1]) if first <= start)
        row = self._starts[group]
        with self._reading(start), parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=leaves):
                if row + batch.num_rows > start:
                    yield max(start, row), batch.slice(max(start - row, 0), stop - max(start, row))
                row += batch.num_rows
                if row >= stop:
                    return

    def _light_leaves(self) -> list[str]:
        """Return the columns to read for records: all but the bytes of images, which stay in the file."""
        columns = tuple(f"{name}." for name in self.image_columns)
        return [leaf for leaf in self._leaves if not (leaf.startswith(columns) and leaf.endswith(".bytes"))]

    def _warn_of_large_groups(self, metadata: Any) -> None:
        """Warn if each image that is opened costs the reading of a large row group."""
        sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
        if self.wanted_images and max(sizes, default=0) > LARGE_GROUP:
            logger.warning(
                "%s: row groups of %d MiB, of which one is read for each image; training is faster from row groups of "
                "about 100 rows (row_group_size), or from what save_to_disk of `datasets` writes",
                *(self.path, max(sizes) // 2**20),
            )


class ArrowFile(Table):
    """An Arrow file or stream, as `datasets` writes; mapped into memory, blocks are ranges of rows."""

    KIND = "Arrow", (b"ARROW1", b"\xff\xff\xff\xff")

    def __init__(self, path: Path, prefix: str = "", recipe: Recipe = AS_IT_IS) -> None:
        self.path = path
        with self._reading():
            self.open(path, prefix, recipe, self._table.schema)
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
        return ranges(self.num_rows, BLOCK_ROWS, num)

    def batches(self, block: Block, *, is_ours: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        (start, stop), row = block, 0
        with self._reading(start):
            for batch in self._table.to_batches():
                end = row + batch.num_rows
                for first in range(max(start, row), min(stop, end), BATCH_ROWS):
                    yield first, batch.slice(first - row, min(BATCH_ROWS, stop - first))
                row = end


def present(column: pa.Array) -> list[list[int]]:
    """Return, for each row of a column of images or of lists of them, the places of those that are there."""
    if not hasattr(column.type, "value_type"):
        return [[0] if there else [] for there in column.is_valid().to_pylist()]
    lengths = pc.list_value_length(column).fill_null(0).to_pylist()
    items = iter(column.flatten().is_valid().to_pylist())
    return [[index for index in range(length) if next(items)] for length in lengths]
