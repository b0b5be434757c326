"""What all readers do: rows with a place, fields with a type, images that are there, ids that are unique.

All problems of a file are collected and raised once.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl.data import path_hints
from qwen_vl.evaluation.records import ImageSource, Record
from qwen_vl.files import read_json

from .problems import Problems

NUM_NAMED = 5  # ids that a message lists
DATA = "data/"  # what the image paths of converted files begin with; the folder that holds it is --data_dir


@dataclass(frozen=True)
class Row:
    """One object of a file, and where it stands there."""

    place: str
    values: Mapping[str, Any]

    def error(self, message: str) -> ValueError:
        """Return an error that names the place."""
        return ValueError(f"{self.place}: {message}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; raise ValueError unless it is one. With a default, a missing or null one is that."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(f"{key}: {self._shown(key)}; use a string")
        return value

    def number(self, key: str) -> float:
        """Return a number, of the type that it has in the file; raise ValueError unless it is one."""
        value: Any = self.values.get(key)
        if not _is_number(value):
            raise self.error(f"{key}: {self._shown(key)}; use a number")
        return value

    def id(self, key: str) -> int | str:
        """Return an id, of the type that it has in the file; raise ValueError unless it is an integer or a text."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.error(f"{key}: {self._shown(key)}; use an integer or a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list, or a single text; () if it is missing or null. Raise ValueError for others."""
        value = self.values.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key}: {self._shown(key)}; use a string or a list of strings")
        return tuple(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """Return a list of so many numbers; raise ValueError unless it is one."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self.error(f"{key}: {self._shown(key)}; use a list of {count} numbers")
        return value

    def _shown(self, key: str) -> str:
        return f"{self.values[key]!r:.80}" if key in self.values else "is missing"


class Images:
    """The images that the files of a benchmark name. Only their existence is checked, once for each."""

    def __init__(self, *folders: Path) -> None:
        """Look for relative paths in these folders, in this order, with and without a leading "data/"."""
        self.folders = folders
        self._found: dict[str, ImageSource] = {}

    def find(self, row: Row, reference: str) -> ImageSource:
        """Return the image; raise ValueError, which says where it was looked for, if it is not there."""
        if reference not in self._found:
            places = self._places(reference)
            path = next((place for place in places if os.path.isfile(place)), None)
            if path is None:
                hint = path_hints.hint(str(places[0]), os.path.exists) if places else ""
                looked = " and ".join(map(str, places))
                raise row.error(f"image {reference!r}: not found as {looked}{hint}; unpack the images there")
            self._found[reference] = ImageSource(reference, path.read_bytes)
        return self._found[reference]

    def _places(self, reference: str) -> list[Path]:
        if os.path.isabs(reference):
            return [Path(reference)]
        plain = os.path.normpath(reference.replace("\\", "/"))
        names = [plain, *([plain.removeprefix(DATA)] if plain.startswith(DATA) else [])]
        return list(dict.fromkeys(folder / name for folder in self.folders for name in names))


def _is_number(value: object) -> bool:
    """Return whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def json_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; raise ValueError with file and line if one cannot be read."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(f"{path}:{number}", line)


def _row(place: str, line: bytes) -> Row:
    """Return the object of a line; raise ValueError if it is torn, or no object."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: is not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{place}: not complete JSON ({error}); get the file again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{place}: {values!r:.80}; use one JSON object a line")
    return Row(place, values)


def json_file(path: Path) -> Any:
    """Return the content of a JSON file; raise ValueError with the file if it cannot be read."""
    return read_json(path, cure="get the file again", encoding="utf-8-sig")


def json_rows(path: Path, key: str | None = None) -> list[Row]:
    """Return the objects of a JSON list, or of the list under `key`; raise ValueError if there is none."""
    content = json_file(path)
    if key is not None:
        content = content.get(key) if isinstance(content, dict) else None
    name = key or ""
    if not isinstance(content, list):
        raise ValueError(f"{path}: has no list{f' {key!r}' if key else ''}; use the original file")
    rows = []
    for number, values in enumerate(content):
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {name}[{number}]: {values!r:.80}; use an object")
        rows.append(Row(f"{path}: {name}[{number}]", values))
    return rows


def collect(rows: Iterable[Row], make: Callable[[Row], Record | None]) -> list[Record]:
    """Return the records that `make` makes of rows; those that are None are left out.

    Raise ValueError with all rows that `make` refuses with one, and with all ids that come twice.
    """
    records, problems, places = [], Problems(), dict[str, str]()
    try:
        for row in rows:
            try:
                record = make(row)
            except ValueError as error:
                problems.add(error)
                continue
            if record is None:
                continue
            if record.id in places:
                problems.add(f"{row.place}: id {record.id!r} was used at {places[record.id]}; use each id once")
            places[record.id] = row.place
            records.append(record)
    except ValueError as error:  # a torn line: what follows is not read
        problems.add(error)
    problems.raise_if_any()
    return records


def by_id(rows: Iterable[Row], key: str) -> dict[int | str, Row]:
    """Return rows by an id; raise ValueError for ids that are missing or come twice."""
    found: dict[int | str, Row] = {}
    problems = Problems()
    for row in rows:
        try:
            name = row.id(key)
        except ValueError as error:
            problems.add(error)
            continue
        if name in found:
            problems.add(f"{row.place}: {key} {name!r} was used at {found[name].place}; use each id once")
        found[name] = row
    problems.raise_if_any()
    return found


def few(ids: Iterable[int | str]) -> str:
    """Return some of many ids for a message."""
    listed = list(ids)
    rest = len(listed) - NUM_NAMED
    return ", ".join(map(str, listed[:NUM_NAMED])) + (f" and {rest} more" if rest > 0 else "")
