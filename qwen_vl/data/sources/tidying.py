"""Records without what a table adds to them: in tables of `datasets`, pandas and Parquet each row has all columns.

Such a library gives every record all keys, with null (or NaN) for a missing one, and writes objects whose keys differ
as JSON text. Both are read as the record that was meant. Nothing else changes: a wrong value stays wrong, and a
required key that is null stays, so that an error names it.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa

REQUIRED = frozenset({"conversations", "from", "value"})
TURN_KEYS = ("conversations", "messages")  # ours, and that of the formats that `qwen-vl data convert` reads
SPEAKER_KEYS = {"from", "role"}  # one of them is in each turn
DEPTH = 6  # record, turns, turn, parts of a content, part, image_url: deeper values stay as they are
EXACT = 2**53  # whole numbers up to here are exact as float


def tidied(record: object) -> object:
    """Return a record without keys that have no value, with its turns as objects and a whole id as an int.

    Return anything but an object as it is.
    """
    if not isinstance(record, dict):
        return record
    with_turns = {key: _turns(value) if key in TURN_KEYS else value for key, value in record.items()}
    filled: dict[str, Any] = _filled(with_turns, DEPTH)
    name = filled.get("id")
    if isinstance(name, float) and name.is_integer() and abs(name) <= EXACT:  # of a column with gaps, in pandas
        filled["id"] = int(name)
    return filled


def _turns(value: object) -> object:
    """Return turns as a list of objects if they are JSON text, hold it, or are columns (Sequence of `datasets`)."""
    value = _object(value, list)
    if isinstance(value, dict):
        columns = {key: column for key, column in value.items() if column is not None}
        is_table = columns.keys() & SPEAKER_KEYS and all(isinstance(column, list) for column in columns.values())
        if is_table and len({len(column) for column in columns.values()}) == 1:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [_object(turn, dict) for turn in value] if isinstance(value, list) else value


def _object(value: object, kind: type) -> object:
    """Return the list or object that a text holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == ("[" if kind is list else "{"):
        try:
            content = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return content if isinstance(content, kind) else value
    return value


def _filled(value: Any, depth: int) -> Any:
    """Return a value without the keys that have no value, down to a depth."""
    if not isinstance(value, dict | list) or not depth:
        return value
    if isinstance(value, list):
        return [_filled(item, depth - 1) for item in value]
    return {
        key: item if isinstance(item, str) else _filled(item, depth - 1)  # most are text, in files of any size
        for key, item in value.items()
        if isinstance(item, str) or key in REQUIRED or not _is_missing(item)
    }


def _is_missing(value: object) -> bool:
    return value is None or value != value  # NaN alone differs from itself


# ---- values of Arrow ------------------------------------------------------------------------------------------------

Decoder = Callable[[Any], Any]


def decoder(kind: pa.DataType) -> Decoder | None:
    """Return a function that converts Python values of an Arrow type to those of JSON; None if they are already.

    It decodes JSON text (arrow.json; ValueError if it is broken), makes an object of a map, and a number of a decimal.
    """
    inner = _inner_decoder(kind)
    return inner and (lambda value: None if value is None else inner(value))


def _inner_decoder(kind: pa.DataType) -> Decoder | None:
    if isinstance(kind, pa.JsonType):
        return json.loads
    if isinstance(kind, pa.BaseExtensionType):
        return _inner_decoder(kind.storage_type)
    if pa.types.is_decimal(kind):
        return _number
    if pa.types.is_dictionary(kind):
        return _inner_decoder(kind.value_type)
    if pa.types.is_map(kind):
        item = decoder(kind.item_type) or (lambda value: value)
        return lambda pairs: {str(key): item(value) for key, value in pairs}
    if pa.types.is_struct(kind):
        return _of_object({field.name: found for field in kind if (found := decoder(field.type))})
    if hasattr(kind, "value_type"):  # lists of all sorts
        inner = decoder(kind.value_type)
        return None if inner is None else lambda values: [inner(value) for value in values]
    return None


def _of_object(fields: dict[str, Decoder]) -> Decoder | None:
    def decode(record: dict[str, Any]) -> dict[str, Any]:
        return {key: fields[key](value) if key in fields else value for key, value in record.items()}

    return decode if fields else None


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)
