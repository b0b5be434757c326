"""Images that data name: paths, addresses and data: URIs, which the model's own reader opens, and cells of tables.

A cell is written as `table://FILE#ROW/COLUMN/PART`, for example `table://train.parquet#12/image/0`. A relative FILE is
looked for as a relative path is. Who trains, checks or evaluates opens images here; a server does not.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from PIL import Image

from qwen_vl.data.sources import cells
from qwen_vl.data.validation import CELL_SCHEME
from qwen_vl.model import image_loading_qwen as loading
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import SearchDirs

CELL = re.compile(rf"{CELL_SCHEME}(.+)#([0-9]+)/(.+)/([0-9]+)", re.DOTALL)


class Cell(NamedTuple):
    """The place of an image in a table. part: in the list that the cell holds; 0 for a single image."""

    file: str
    row: int
    column: str
    part: int

    def __str__(self) -> str:
        return f"{CELL_SCHEME}{self.file}#{self.row}/{self.column}/{self.part}"


def parse(reference: str) -> Cell | None:
    """Return the Cell that a reference names, or None if it names none."""
    match = CELL.fullmatch(reference) if reference.startswith(CELL_SCHEME) else None
    return match and Cell(match[1], int(match[2]), match[3], int(match[4]))


def is_local(reference: str) -> bool:
    """Return whether a reference names an image on this machine: a path or a cell."""
    return reference.startswith(CELL_SCHEME) or loading.is_local(reference)


def find(reference: str, search_dirs: SearchDirs = ()) -> str | None:
    """Return a local reference with its path found in one of the folders, or None if there is no such file or row."""
    cell = parse(reference)
    if cell is None:
        return None if reference.startswith(CELL_SCHEME) else loading.find_image(reference, search_dirs)
    file = loading.find_image(cell.file, search_dirs)
    try:
        there = file is not None and cell.row < cells.num_rows(Path(file))
    except (OSError, ValueError, pa.ArrowException):
        there = False
    return str(cell._replace(file=os.path.abspath(file))) if there and file else None


def located(reference: str, search_dirs: SearchDirs) -> str:
    """Return a local reference with its path found in one of the folders; any other reference as it is."""
    return (find(reference, search_dirs) if is_local(reference) else None) or reference


def exists(reference: str, search_dirs: SearchDirs = ()) -> bool:
    """Return whether a local image exists: a file, or a cell with bytes or the path of a file."""
    found = find(reference, search_dirs)
    cell = found and parse(found)
    if not cell:
        return found is not None
    try:
        return cells.has_image(Path(cell.file), cell.row, cell.column, cell.part)
    except (OSError, LookupError, ValueError, pa.ArrowException):
        return False


def file_of(reference: str) -> str:
    """Return the path of the file that holds the image of a local reference."""
    cell = parse(reference)
    return cell.file if cell else reference


def content(reference: str) -> bytes:
    """Return the encoded bytes of a local image that `find` found. Raise ImageError if a cell holds none, OSError."""
    cell = parse(reference)
    if cell is None:
        return Path(reference).read_bytes()
    file = Path(cell.file)
    try:
        value = cells.cell(file, cell.row, cell.column)
        items = value if isinstance(value, list) else [value]
        return cells.content_of(items[cell.part], file, cell.column)
    except (ValueError, IndexError, KeyError, StopIteration, pa.ArrowException) as error:
        raise ImageError(f"image {reference}: no image in that cell ({error}); was the table written again?") from error


def read(reference: str | Image.Image, search_dirs: SearchDirs = ()) -> Image.Image:
    """Return the image of a reference as `read_image` does, cells of tables included. Raise ImageError."""
    if not isinstance(reference, str) or not reference.startswith(CELL_SCHEME):
        return loading.read_image(reference, search_dirs=search_dirs)
    found = find(reference, search_dirs)
    if found is None:
        raise ImageError(f"image {reference}: no such table or row; correct it, or name the folder of the table")
    try:
        return loading.decode(content(found), found)
    except OSError as error:
        raise ImageError(f"image {reference}: {error.strerror or error}; make the file readable") from error


def found_all(references: Iterable[str], search_dirs: SearchDirs) -> bool:
    """Return whether every local image of some references exists."""
    return all(find(reference, search_dirs) for reference in references if is_local(reference))
