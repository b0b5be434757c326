"""Columns of a data set as conversations: a YAML file that names the data and says which column is what.

    data: hf:owner/name:train      # or a file, a folder or a pattern, relative to this file
    columns:
      id: question_id
      images: image                # a column, or a list of them; each holds an image or a list of images
      user: question               # a column, a text with {column} in it, or {text: ".."} for a fixed one
      assistant: answer

Such a file is given wherever data are. docs/data.md describes its keys.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwen_vl.data.convert.chat_formats import FORMATS, to_ours
from qwen_vl.data.validation import DataError, FieldError, Problem, kind_of, shown

from .hub_data import is_hub_name

SUFFIXES = (".yaml", ".yml")
KEYS = ("data", "columns", "format")
TEXTS = ("user", "assistant", "system")  # these may be a text with columns in it
SINGLE = ("id", "weight", "metric", "category", "references", "conversations", *TEXTS)  # a key of ours: one column
IMAGE_COLUMNS = ("image", "images")  # of a table without a map
PLACE = re.compile(r"\{([^{}]+)\}")
PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class ColumnMap:
    """Which column is what. `path` is the YAML file, `data` the path of the data that it names."""

    path: str
    data: str
    columns: Mapping[str, Any]
    format: str = "llava"  # one of `chat_formats.FORMATS`: how turns and boxes are written

    @property
    def images(self) -> list[str]:
        """Return the columns that hold images."""
        found = self.columns.get("images", [])
        return [found] if isinstance(found, str) else list(found)

    def needed(self) -> Iterator[tuple[str, str]]:
        """Yield (key of the map, column) for every column that the map names."""
        for key, value in self.columns.items():
            if key == "images":
                yield from ((key, column) for column in self.images)
            elif key in TEXTS and (text := template(value)) is not None:
                yield from ((key, column) for column in PLACE.findall(text))
            else:
                yield key, value

    def check(self, file: Path, columns: Sequence[str]) -> None:
        """Raise DataError if a table lacks a column that the map names."""
        for key, column in self.needed():
            if column not in columns:
                raise DataError(
                    f"{self.path}: columns.{key}: no column {column!r} in {file}, only {', '.join(columns)}; correct it"
                    + (f', or write a fixed text as {{text: "{column}"}}' if key in TEXTS else "")
                )

    def mapped(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row under our keys: "conversations", perhaps "images" (a list) and others.

        Raise FieldError if a column that is needed is missing, or holds something else than a text.
        """
        ours: dict[str, Any] = {}
        for key, value in self.columns.items():
            if key in TEXTS:
                continue
            if key == "images":
                ours[key] = [image for column in self.images for image in listed(row.get(column))]
            elif row.get(value) is not None:
                ours[key] = row[value]
        if "system" in self.columns and (system := self._text("system", row)):
            ours["system"] = system
        if "user" in self.columns:
            ours["conversations"] = [{"from": role, "value": self._text(role, row)} for role in ("user", "assistant")]
        return ours

    def _text(self, key: str, row: Mapping[str, Any]) -> str:
        """Return the text of a role in a row."""
        value = self.columns[key]
        if (text := template(value)) is not None:
            return PLACE.sub(lambda match: str(self._cell(key, row, match[1])), text)
        found = self._cell(key, row, value)
        if not isinstance(found, str):
            raise FieldError(value, f"a {kind_of(found)}; columns.{key} needs a column of texts")
        return found

    def _cell(self, key: str, row: Mapping[str, Any], column: str) -> Any:
        """Return a cell; raise FieldError if there is none."""
        found = row.get(column)
        if found is None and key != "system":
            raise FieldError(
                column, f"empty; columns.{key} of {self.path} needs it, so fill it in or leave the row out"
            )
        return "" if found is None else found


def template(value: Any) -> str | None:
    """Return the text, perhaps with columns in it, that a key of a map gives; None if it names a column."""
    if isinstance(value, dict):
        return value["text"]
    return value if "{" in value else None


def finished(record: object, columns: ColumnMap | None, image_columns: Sequence[str] = ()) -> object:
    """Return a tidied record of a file as a record of ours, or a Problem if it cannot be made one.

    image_columns: the columns of a table that hold images. Without a map, those called image or images are put into
    the texts, unless these name images themselves; such a table may have the turns of LLaVA and others.
    """
    if not isinstance(record, dict):
        return record
    try:
        if columns is not None:
            return conversation(columns.mapped(record), columns.format)
        named = [name for name in image_columns if name in IMAGE_COLUMNS]
        images = [image for name in named for image in listed(record.get(name))]
        ours = {key: value for key, value in record.items() if key not in image_columns}
        turns = record.get("conversations")
        if not named or not isinstance(turns, list) or any("<img>" in text for text in _texts(turns)):
            return ours
        return conversation(ours | {"images": images}, FORMATS[0])
    except FieldError as error:
        return Problem("", error.id, error.field, "wrong value", str(error))


def listed(value: Any) -> list[Any]:
    """Return a value as a list: none for None."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def conversation(row: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return our record of a row with "conversations" and "images", its images put into the text.

    Images take the places of <image> in the texts. Without any, all of them come before the first question.
    form: how turns and boxes are written. Raise FieldError if the row cannot be converted.
    """
    turns, images = row.get("conversations"), listed(row.get("images"))
    kept = {key: row[key] for key in ("metric", "category", "references") if key in row}
    if images and isinstance(turns, list) and not any(PLACEHOLDER in text for text in _texts(turns)):
        turns = _with_images(turns, len(images))
    record = {key: value for key, value in row.items() if key not in kept} | {"conversations": turns, "images": images}
    return to_ours(record, form, Counter(), _no_size) | kept


def _texts(turns: Sequence[Any]) -> Iterator[str]:
    """Yield the texts of all turns, those of parts included."""
    for turn in turns:
        for key in ("value", "content", "text"):
            value = turn.get(key) if isinstance(turn, dict) else None
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (PLACEHOLDER if part.get("type") == "image" else str(part.get("text")) for part in value)


def _with_images(turns: list[Any], count: int) -> list[Any]:
    """Return the turns with a placeholder for each image before the first turn that is not a system turn."""
    for index, turn in enumerate(turns):
        role = (turn.get("from") or turn.get("role")) if isinstance(turn, dict) else None
        key = next((key for key in ("value", "content", "text") if isinstance(turn, dict) and key in turn), None)
        if role != "system" and key and isinstance(turn[key], str):
            return [*turns[:index], {**turn, key: f"{PLACEHOLDER}\n" * count + turn[key]}, *turns[index + 1 :]]
    return turns


def _no_size(reference: str) -> tuple[int, int]:
    raise FieldError("objects", f"boxes in pixels of {reference:.60}; convert the file with `qwen-vl data convert`")


# ---- the file -------------------------------------------------------------------------------------------------------


def is_map(path: str | os.PathLike) -> bool:
    """Return whether a path of data is a YAML file that maps columns."""
    return str(path).lower().endswith(SUFFIXES) and os.path.isfile(path)


def read_map(path: str | os.PathLike) -> ColumnMap:
    """Return the ColumnMap of a YAML file. Raise DataError with everything that is wrong with it."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    wrong = list(_problems(content))
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)} (docs/data.md has an example)")
    data = content["data"]
    if not is_hub_name(data) and not os.path.isabs(data):
        data = os.path.join(os.path.dirname(os.path.abspath(path)), data)
    return ColumnMap(str(path), data, content["columns"], content.get("format", "llava"))


def _problems(content: Any) -> Iterator[str]:
    """Yield what is wrong with the content of a map."""
    if not isinstance(content, dict) or not isinstance(content.get("data"), str):
        yield "a map of columns has the keys data (a path or a name on a hub) and columns"
        return
    yield from (f"unknown key {key!r}; use {', '.join(KEYS)}" for key in content if key not in KEYS)
    if str(content["data"]).lower().endswith(SUFFIXES):
        yield "data: names another map; name the data themselves"
    if content.get("format", FORMATS[0]) not in FORMATS:
        yield f"format: {shown(content['format'])}; use {', '.join(FORMATS)}"
    columns = content.get("columns")
    if not isinstance(columns, dict) or not columns:
        yield "columns: missing; say which column is what"
        return
    for key, value in columns.items():
        texts = isinstance(value, list) and key == "images" and all(isinstance(one, str) for one in value)
        if key not in (*SINGLE, "images"):
            yield f"columns.{key}: unknown; use {', '.join((*SINGLE, 'images'))}"
        elif key in TEXTS and isinstance(value, dict) and value.keys() == {"text"} and isinstance(value["text"], str):
            continue
        elif not isinstance(value, str) and not texts:
            yield f"columns.{key}: a {kind_of(value)}; use the name of a column"
    has_turns, texts = "conversations" in columns, {"user", "assistant"} & columns.keys()
    if has_turns == bool(texts) or len(texts) == 1:
        yield "columns: name conversations, or both user and assistant"
