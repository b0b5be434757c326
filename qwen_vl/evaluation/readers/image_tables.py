"""Parquet and Arrow files with encoded images: rows without them, and images that are read again when asked.

Local data sets of Hugging Face are such files. Nothing is decoded or kept here, and nothing is downloaded.
"""

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from qwen_vl.data.sources import cells as tables
from qwen_vl.data.sources.locating import data_files
from qwen_vl.data.sources.opening import form_of
from qwen_vl.evaluation.records import ImageSource

from .encoded_images import check_image

SPLITS = ("train", "test", "testA", "testB", "testdev", "validation", "valid", "val", "dev", "image", "non_image")
SHARD = re.compile(r"-([0-9]+)-of-([0-9]+)")  # in the name of a file
SAME_SPLIT = {"valid": "validation", "val": "validation"}
SUFFIXES = (".parquet", ".arrow")
ROWS_WITH_IMAGES, ROWS = 16, 4096  # that become Python objects at a time


class TableRow(NamedTuple):
    """A row: where it is, its cells, its images in the order of the columns, and their (width, height)."""

    place: str
    cells: dict[str, Any]
    images: tuple[ImageSource, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    problem: str = ""  # why there are no images: one is missing or cut


class ImageTables:
    """The files of one split of a local data set."""

    def __init__(self, path: Path, *, split: str | None = None, config: str | None = None) -> None:
        """Find the files; raise ValueError if there is no such split, or a file is none, OSError.

        path: a file, a folder that `save_to_disk` wrote, or a folder of files. split, config: as the hub calls them;
        both are looked for in the names of files and folders, and matter only if the names tell several of them.
        """
        self.path = path
        self.files = files_of(path, split=split, config=config)
        self.schema = _schema(self.files[0])
        self.columns = [name for name in self.schema.names if not tables.is_image(self.schema.field(name).type)]
        self.image_columns = [name for name in self.schema.names if name not in self.columns]

    def rows(self) -> Iterator[TableRow]:
        """Yield the rows of all files. Raise ValueError for a damaged file."""
        by_digest: dict[bytes, ImageSource] = {}
        for file in self.files:
            number = 0
            for batch in _batches(file, ROWS_WITH_IMAGES if self.image_columns else ROWS):
                for cells in batch.to_pylist():
                    images = {column: cells.pop(column, None) for column in self.image_columns}
                    try:
                        found, problem = list(self._images(file, number, images, by_digest)), ""
                    except ValueError as error:
                        found, problem = [], str(error)
                    sources, sizes = tuple(one for one, _ in found), tuple(size for _, size in found)
                    yield TableRow(f"{file}[{number}]", cells, sources, sizes, problem)
                    number += 1

    def _images(
        self, file: Path, row: int, images: Mapping[str, Any], by_digest: dict[bytes, ImageSource]
    ) -> Iterator[tuple[ImageSource, tuple[int, int] | None]]:
        """Yield the source and the size of each image of a row; images with the same bytes have one source."""
        for column, value in images.items():
            for part, content in enumerate(tables.contents(value, file, column)):
                try:
                    size = check_image(content)
                except ValueError as error:
                    raise ValueError(f"{column}: {error}; the image is cut or damaged: get the file again") from error
                others = len(images) > 1 or part
                name = f"{file.name}[{row}]" + (f".{column}#{part + 1}" if others else "")
                source = ImageSource(name, functools.partial(_image_bytes, file, row, column, part))
                yield by_digest.setdefault(hashlib.sha256(content).digest(), source), size


def files_of(path: Path, *, split: str | None = None, config: str | None = None) -> list[Path]:
    """Return the Parquet or Arrow files of a split below `path`; raise ValueError if it has no such split, OSError."""
    path = path / config if config and (path / config).is_dir() else path
    folders = [
        path,
        *(path / name for name in (split or "", *(old for old, new in SAME_SPLIT.items() if new == split))),
    ]
    saved = next((folder for folder in folders if (folder / "state.json").is_file()), None)
    if saved is not None or not path.is_dir():
        return [file for file, _ in data_files(saved or path)]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    files = [file for file in files if not file.name.startswith(("cache-", "."))]  # those that `datasets` computed
    if not files:
        raise ValueError(f"{path}: no Parquet or Arrow files in this folder; copy the data set there")
    if config and path.name != config:
        files = _of_config(files, path, config)
    files = _of_split(files, path, split)
    _check_shards(files)
    return files


def _of_split(files: Sequence[Path], root: Path, split: str | None) -> list[Path]:
    """Return the files of a split, or all if their names tell none; raise ValueError if there is no such split."""
    names = {file: _split_of(file, root, split) for file in files}
    known = sorted({name for name in names.values() if name})
    if split is None and len(known) > 1:
        raise ValueError(f"{root}: holds the splits {', '.join(known)}; name the files of one of them")
    if split is None or not known:
        return list(files)
    found = [file for file in files if names[file] == SAME_SPLIT.get(split, split)]
    if not found:
        raise ValueError(f"{root}: has no split {split!r}, only {', '.join(known)}; copy it there")
    folders = sorted({file.parent for file in found})
    if len(folders) > 1:
        names_of = ", ".join(str(folder.relative_to(root)) for folder in folders)
        raise ValueError(f"{root}: split {split!r} is in the folders {names_of}; name one of them")
    return found


def _check_shards(files: Sequence[Path]) -> None:
    """Raise ValueError if one of a number of files that belong together is missing (test-00000-of-00003.parquet)."""
    shards = [(file, match) for file in files if (match := SHARD.search(file.name))]
    there = {(match.string[: match.start()], int(match[1])) for _, match in shards}
    for file, match in shards:
        start, total = match.string[: match.start()], int(match[2])
        missing = [number for number in range(total) if (start, number) not in there]
        if missing:
            raise ValueError(f"{file}: of its {total} files, number {missing[0]:05} is missing; copy all of them there")


def _of_config(files: Sequence[Path], root: Path, config: str) -> list[Path]:
    """Return the files of a config: those in a folder of its name, or all if there are no configs; else ValueError."""
    folders = {file: file.relative_to(root).parts[:-1] for file in files}
    found = [file for file in files if config in folders[file]]
    others = sorted({name for names in folders.values() for name in names} - {"data", *SPLITS})
    if not found and others:
        raise ValueError(f"{root}: no folder {config!r}, only {', '.join(others):.200}; copy that config there")
    return found or list(files)


def _split_of(file: Path, root: Path, split: str | None) -> str:
    """Return the split that the name of a file, or of a folder above it, tells; "" if none does. split: one more."""
    known = SPLITS if split is None else (split, *SPLITS)
    match = re.search(rf"(?:^|[-_])({'|'.join(map(re.escape, known))})(?=[-.])", file.name)
    folders = [name for name in file.relative_to(root).parts[:-1] if name in known]
    name = match[1] if match else folders[-1] if folders else ""
    return SAME_SPLIT.get(name, name)


# ---- one file -------------------------------------------------------------------------------------------------------


def _image_bytes(file: Path, row: int, column: str, part: int) -> bytes:
    """Return an image; raise OSError if the file was changed since it was read first."""
    try:
        return next(
            content
            for number, content in enumerate(tables.contents(tables.cell(file, row, column), file, column))
            if number == part
        )
    except (ValueError, IndexError, KeyError, StopIteration, pa.ArrowException) as error:
        raise OSError(f"{file} is not the file any more that was read at the start") from error


def _schema(file: Path) -> Any:
    try:
        if form_of(file) == "parquet":
            return parquet.read_schema(file)
        return tables.arrow_table(file, tables.stamp(file)).schema
    except pa.ArrowException as error:
        raise _damaged(file, error) from error


def _batches(file: Path, num_rows: int) -> Iterator[Any]:
    try:
        if form_of(file) == "parquet":
            with parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(batch_size=num_rows)
        else:
            yield from tables.arrow_table(file, tables.stamp(file)).to_batches(max_chunksize=num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0]
    return ValueError(f"{file}: damaged, or neither Parquet nor Arrow ({reason:.200}); get the file again")


def column_names(columns: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    return f"{', '.join(columns):.300}"
