"""Single cells of Parquet and Arrow files, and the encoded images in them."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from .opening import form_of

ROWS_AT_A_TIME = 16  # of a large row group
MAX_GROUP = 128 * 2**20  # bytes of a row group that is kept; of a larger one, the rows are read up to the one asked


def is_image(kind: pa.DataType) -> bool:
    """Return whether a column holds encoded images: bytes, {"bytes", "path"} as `datasets` has it, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_image(kind.value_type)
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(number).name for number in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def has_path(kind: pa.DataType) -> bool:
    """Return whether a column of images has their paths as well, so it cannot be anything else."""
    return has_path(kind.value_type) if hasattr(kind, "value_type") else pa.types.is_struct(kind)


def contents(value: Any, file: Path, column: str) -> Iterator[bytes]:
    """Yield the encoded images of a cell; raise ValueError if one is missing, OSError if its file is."""
    for image in value if isinstance(value, list) else [] if value is None else [value]:
        yield content_of(image, file, column)


def content_of(image: Any, file: Path, column: str) -> bytes:
    """Return one encoded image of a cell. Its path counts from the folder of the table if it has no bytes."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if content is None:
        name = image.get("path") if isinstance(image, dict) else None
        if name is None or not is_beside(name, file):
            raise ValueError(f"{column}: no bytes, and {name!r} is no file beside the table; get the complete data set")
        content = (file.parent / name).read_bytes()
    return content


def is_beside(name: str | None, file: Path) -> bool:
    """Return whether the path of an image without bytes names a file, counted from the folder of its table."""
    return bool(name) and (file.parent / str(name)).is_file()


def has_image(file: Path, row: int, column: str, part: int) -> bool:
    """Return whether a cell that is not empty has the bytes of an image, or the path of a file. None is read whole."""
    if form_of(file) == "parquet":
        group, row = _place(_metadata(file, stamp(file)), row)
        if not _lacks_bytes(file, stamp(file), column)[group]:
            return True
        value = _group(file, stamp(file), group, column)[row]
    else:
        value = arrow_table(file, stamp(file)).column(column)[row]
    image = value[part] if isinstance(value, pa.ListScalar | pa.LargeListScalar) else value
    if not isinstance(image, pa.StructScalar):
        return image.is_valid
    return image["bytes"].is_valid or is_beside(image["path"].as_py(), file)


def num_rows(file: Path) -> int:
    """Return the number of rows of a file. Raise OSError or pa.ArrowException if it cannot be read."""
    return _num_rows(file, stamp(file))


def cell(file: Path, row: int, column: str) -> Any:
    """Return a cell of a file; of a Parquet file, only the row group that has it is read."""
    if form_of(file) != "parquet":
        return arrow_table(file, stamp(file)).column(column)[row].as_py()
    metadata = _metadata(file, stamp(file))
    group, row = _place(metadata, row)
    if metadata.row_group(group).total_byte_size <= MAX_GROUP:
        return _group(file, stamp(file), group, column)[row].as_py()
    with parquet.ParquetFile(file, metadata=metadata) as opened:
        batches = opened.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[column])
        batch = next(batch for number, batch in enumerate(batches) if number == row // ROWS_AT_A_TIME)
        return batch.column(0)[row % ROWS_AT_A_TIME].as_py()


def _place(metadata: parquet.FileMetaData, row: int) -> tuple[int, int]:
    """Return (row group, row in it) of a row; raise IndexError if there is none."""
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise IndexError("no such row")


@functools.lru_cache(maxsize=256)
def _metadata(file: Path, stamp: tuple[int, int]) -> parquet.FileMetaData:
    return parquet.read_metadata(file)


@functools.lru_cache(maxsize=256)
def _lacks_bytes(file: Path, stamp: tuple[int, int], column: str) -> list[bool]:
    """Return, for each row group, whether some image of a column may have no bytes, as far as its statistics say."""
    found, metadata = [], _metadata(file, stamp)
    for group in range(metadata.num_row_groups):
        parts = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        counts = [
            part.statistics.null_count if part.is_stats_set and part.statistics.has_null_count else None
            for part in parts
            if part.path_in_schema.startswith(f"{column}.") and part.path_in_schema.endswith(".bytes")
        ]
        found.append(counts != [0])
    return found


@functools.lru_cache(maxsize=2)
def _group(file: Path, stamp: tuple[int, int], group: int, column: str) -> Any:
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(0)


@functools.lru_cache(maxsize=1024)
def _num_rows(file: Path, stamp: tuple[int, int]) -> int:
    if form_of(file) == "parquet":
        return _metadata(file, stamp).num_rows
    return arrow_table(file, stamp).num_rows


@functools.lru_cache(maxsize=256)
def arrow_table(file: Path, stamp: tuple[int, int]) -> Any:
    """Return the table of an Arrow file, which is mapped into memory and not read. stamp: that of the file now."""
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped).read_all()


def stamp(file: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    state = file.stat()
    return state.st_mtime_ns, state.st_size
