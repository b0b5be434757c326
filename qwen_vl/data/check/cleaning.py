"""A data file without its bad records. The others stay as they were: byte for byte in JSON, row for row in tables."""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from qwen_vl.data.sources.json_files import LINE_SUFFIXES
from qwen_vl.data.sources.json_lists import skip_space
from qwen_vl.data.sources.locating import locate
from qwen_vl.data.sources.opening import form_of, open_bytes, packed, plain_name
from qwen_vl.data.sources.readers import open_whole
from qwen_vl.data.validation import DataError
from qwen_vl.files import whole_file

Bytes = Iterator[bytes]


def write_cleaned(data_path: str | os.PathLike, out: str | os.PathLike, places: Collection[str]) -> None:
    """Write a data file without the records at `places`.

    A JSON file keeps its bytes, and is packed if OUT ends with .gz or .zst. A table or folder becomes Parquet with all
    its columns if OUT ends with .parquet, JSON Lines if it ends with .jsonl, and a JSON list otherwise.
    Raise DataError if OUT cannot hold the format of the file.
    """
    found, suffix = locate(data_path), plain_name(out).suffix.lower()
    files = found.files
    is_text = len(files) == 1 and form_of(files[0][0]) == "text" and found.columns is None
    if suffix == ".arrow" or (is_text and suffix == ".parquet"):
        kinds = "JSON: name it .json or .jsonl" if is_text else "JSON or Parquet: name it .json, .jsonl or .parquet"
        raise DataError(f"--fix {out}: writes {kinds}")
    if suffix == ".parquet":
        _write_parquet(data_path, out, places)
        return
    content = _records(data_path, places, suffix) if not is_text else _without(files[0][0], places)
    with whole_file(out) as file:
        file.writelines(packed(content, out))


def _without(path: Path, places: Collection[str]) -> Bytes:
    """Yield the content of a JSON file in pieces, without the records at `places`."""
    return _elements(path, places) if any(place.startswith("[") for place in places) else _lines(path, places)


def _lines(path: Path, places: Collection[str]) -> Bytes:
    """Yield the lines of a JSON Lines file that are not at `places`."""
    with open_bytes(path) as file:
        yield from (line for number, line in enumerate(file, start=1) if f":{number}" not in places)


def _elements(path: Path, places: Collection[str]) -> Bytes:
    """Yield the text of a JSON list in pieces, without the elements at `places` and the commas before them."""
    with open_bytes(path) as file:
        text = file.read().decode()  # with its byte order mark, if any
    scan = json.JSONDecoder().raw_decode
    position = text.index("[") + 1
    yield text[:position].encode()
    end, is_first, index = position, True, 0
    while True:
        start = skip_space(text, position)
        before = text[position if is_first else end : start]  # the comma and the space around it
        _, end = scan(text, start)
        if f"[{index}]" not in places:
            is_first = False
            yield (before + text[start:end]).encode()
        position = skip_space(text, end) + 1  # after the comma, or the bracket that closes the list
        if text[position - 1] == "]":
            yield text[end:].encode()
            return
        index += 1


def _records(path: str | os.PathLike, places: Collection[str], suffix: str) -> Bytes:
    """Yield the JSON of the records of a path that are not at `places`: a list, or lines if the suffix says so."""
    is_list, is_first = suffix not in LINE_SUFFIXES, True
    yield b"[\n" if is_list else b""
    for file in open_whole(path):
        for place, record in file.records():
            if file.prefix + place not in places:
                yield b",\n" * (is_list and not is_first) + _json(record) + b"\n" * (not is_list)
                is_first = False
    yield b"\n]\n" if is_list else b""


def _json(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _write_parquet(path: str | os.PathLike, out: str | os.PathLike, places: Collection[str]) -> None:
    """Write the rows of tables that are not at `places`. Raise DataError if one of the files is JSON."""
    tables = []
    for file in open_whole(path):
        if file.columns is None:
            raise DataError(f"--fix {out}: {file.path} is JSON; name it .json or .jsonl")
        rows = [index for index in range(file.num_rows) if f"{file.prefix}[{index}]" not in places]
        tables.append(file.table().take(pa.array(rows, pa.int64())))
    with whole_file(out) as target:
        parquet.write_table(pa.concat_tables(tables, promote_options="default"), target)
