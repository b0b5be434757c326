"""JSON and JSON Lines: the records of a file, and the errors for a text that is not JSON."""

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator

from qwen_vl.data.path_hints import is_invisible
from qwen_vl.data.validation import DataError, Problem, kind_of

from .opening import open_bytes, plain_name

LINE_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"?|,(?=\s*([}\]]))', re.DOTALL)
MAX_LINES_NAMED = 5
CURLY_QUOTES = "“”„‟«»"
WORDS_OF_PYTHON = {"True": "true", "False": "false", "None": "null"}
PANDAS = 'write it with to_json(.., orient="records")'

Entry = tuple[str, object]  # (place, record), or (place, Problem) for a line that is not JSON


def records(path: str | os.PathLike) -> Iterator[Entry]:
    """Yield (place, record) for each record; place is "[3]" in a JSON list, ":4" (the line) in JSON Lines.

    A line that is not JSON becomes a Problem. A file that is JSON Lines by its name and content is read line by line,
    so it need not fit in memory. Raise DataError if the file as a whole cannot be used, OSError if it cannot be read.
    """
    if is_named_lines(path) and begins_with_an_object(path):
        with open_bytes(path) as file:
            yield from _parse_lines(_decoded(path, file))
    else:
        yield from _parse(path)


def is_named_lines(path: str | os.PathLike) -> bool:
    """Return whether a name says JSON Lines, packed or not."""
    return plain_name(path).suffix.lower() in LINE_SUFFIXES


def begins_with_an_object(path: str | os.PathLike) -> bool:
    """Return whether the first line that is not blank holds one whole JSON object."""
    with open_bytes(path) as file:
        first = next((line for line in file if line.strip()), b"")
    return _is_object(first.removeprefix(codecs.BOM_UTF8))


def read_json(path: str | os.PathLike) -> object:
    """Return the content of a JSON file. Raise DataError if it is empty, not UTF-8 or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {json_error(error)}; correct it there, or write the file with json.dump") from None


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file without a byte order mark. Raise DataError if it is empty or not UTF-8."""
    with open_bytes(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, error.start, content[error.start], line) from None
    if not text.strip():
        raise DataError(f"{path}: empty; give a JSON list of conversations")
    return text


def parsed_line(line: bytes, place: str, *, is_first: bool) -> object:
    """Return the record of a line of JSON Lines, or a Problem if the line is not JSON."""
    try:
        return json.loads(line.decode("utf-8-sig" if is_first else "utf-8"))
    except UnicodeDecodeError as error:
        found = f"not UTF-8 (0x{line[error.start]:02x} at byte {error.start} of the line); save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        found = f"{json_error(error, is_line=True)}; write one whole record on each line"
    return Problem(place, None, "", "broken JSON", found)


def _decoded(path: str | os.PathLike, file: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of an open UTF-8 file as text, without a byte order mark."""
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start, line[error.start], number) from None
        offset += len(line)


def _parse(path: str | os.PathLike) -> Iterable[Entry]:
    """Return [(place, record), ..] of a file that is read as a whole."""
    text, is_named = read_text(path), is_named_lines(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if is_named or _is_object(text.lstrip().split("\n", 1)[0]):
            return _parse_lines(text.split("\n"))  # not splitlines: U+2028 may stand inside a string
        if plain_name(path).suffix.lower() in TABLE_SUFFIXES:
            raise DataError(f"{path}: a table in text; write its rows as JSON Lines or Parquet") from None
        raise DataError(f"{path}: {json_error(error)}; correct it there, or write the file with json.dump") from None
    if isinstance(content, dict) and is_named:
        return [(":1", content)]
    if not isinstance(content, list):
        raise DataError(f"{path}: {not_a_list(content)}")
    if not content:
        raise DataError(f"{path}: an empty list; give at least one conversation")
    if all(isinstance(row, list) for row in content):
        raise DataError(f"{path}: a list of lists, such as pandas writes with orient='values'; {PANDAS}")
    return [(f"[{index}]", record) for index, record in enumerate(content)]


def _not_utf8(path: str | os.PathLike, position: int, byte: int, line: int) -> DataError:
    return DataError(f"{path}: not UTF-8 at byte {position} (0x{byte:02x}, line {line}); save it as UTF-8")


def _is_object(line: str | bytes) -> bool:
    """Return whether a line is one whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield (":line", record) for every line that is not blank; a line that is not JSON becomes a Problem."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f":{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            message = f"{json_error(error, is_line=True)}; write one whole record on each line"
            yield f":{number}", Problem(f":{number}", None, "", "broken JSON", message)


# ---- the errors for other content -----------------------------------------------------------------------------------


def not_a_list(content: object) -> str:
    """Return what to do with a JSON file that holds something other than a list."""
    if not isinstance(content, dict):
        return f"holds a {kind_of(content)}, not a list; give a JSON list of conversations"
    values = list(content.values())
    if content.keys() >= {"columns", "index", "data"} or content.keys() >= {"schema", "data"}:
        return f"a table of pandas; {PANDAS}"
    if values and all(isinstance(value, dict) for value in values):
        if len({tuple(value) for value in values}) == 1 and "conversations" in content:
            return f"columns of pandas (its to_json as it is by default); {PANDAS}"
        if any("conversations" in value for value in values):
            return f"records under keys of their own, such as pandas writes with orient='index'; {PANDAS}"
    if content.keys() >= {"images", "annotations"}:
        return "annotations of COCO or RefCOCO, not conversations; see `qwen-vl data convert --from coco`"
    if "conversations" in content:
        turns = content["conversations"]
        if isinstance(turns, list) and turns and all(isinstance(turn, list) for turn in turns):
            return f"columns, such as to_dict() of pandas and `datasets` gives; {PANDAS}, or a list of records"
        return "holds one conversation, not a list; put [ before it and ] after it"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if lists:
        return f"holds an object, not a list; save the list under its key {lists[0]!r} alone"
    return "holds an object, not a list; give a JSON list of conversations"


def json_error(error: Exception, *, is_line: bool = False) -> str:
    """Return where a text, or a line of JSON Lines, stops being JSON, and why."""
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON that can be read ({error})"
    place = f"column {error.colno}" if is_line else f"line {error.lineno}, column {error.colno}"
    return f"not JSON at {place} ({cause_of(error, is_line=is_line) or error.msg})"


def cause_of(error: json.JSONDecodeError, *, is_line: bool) -> str | None:
    """Return the mistake that caused a parser error and how to correct it; None if it is not a common one."""
    text, position = error.doc, error.pos
    char, before, rest = text[position : position + 1], text[:position].rstrip(), text[position:]
    if (char in ("}", "]") and before.endswith(",")) or (char == "," and rest[1:].lstrip()[:1] in ("}", "]")):
        return _of_commas(_trailing_commas(text), is_line)
    if error.msg.startswith("Invalid control"):
        return f"{_named(char)} inside a string; write {json.dumps(char)[1:-1]} for it, or close the string before it"
    if "escape" in error.msg:
        return "a backslash inside a string; write / in paths, and \\\\ for a backslash that is meant"
    if not rest.strip() or error.msg.startswith("Unterminated"):
        return "the text ends here, or a string is not closed; was the file cut short?"
    if rest.startswith(("//", "/*", "#")):
        return "a comment, which JSON does not have; remove it"
    if error.msg == "Extra data":
        return _of_extra_data(rest, is_line)
    if error.msg == "Expecting ',' delimiter" and before.endswith('"'):
        return 'a comma is missing, or a quote inside the string before is not written as \\"'
    if error.msg == "Expecting ',' delimiter" and before.endswith(("}", "]")):
        return "a comma is missing before it"
    return _of_other_languages(char, rest)


def _of_extra_data(rest: str, is_line: bool) -> str | None:
    if is_line and rest.strip() == ",":
        return "a comma after the record; remove it"
    if rest[0] == ",":
        return "records without a list around them; put [ before the first and ] after the last"
    if rest[0] in "{[":
        return "a second value after the first; put all records into one list, or each on a line of its own"
    return None


def _of_other_languages(char: str, rest: str) -> str | None:
    word = next((word for word in WORDS_OF_PYTHON if rest.startswith(word)), None)
    if word:
        return f"{word} is Python; write {WORDS_OF_PYTHON[word]}, or the file with json.dump"
    if char == "'":
        return "single quotes, as Python prints them; write double ones, or the file with json.dump"
    if char in CURLY_QUOTES:
        return f'{char} is a typographic quote; write "'
    return f"{_named(char)}, which is invisible; remove it" if is_invisible(char) else None


def _trailing_commas(text: str) -> list[tuple[int, str]]:
    """Return (line, the bracket after it) of each comma that no value follows."""
    found, line, position = [], 1, 0
    for match in STRING_OR_COMMA.finditer(text):
        if match[1]:
            line += text.count("\n", position, match.start())
            position = match.start()
            found.append((line, match[1]))
    return found


def _of_commas(commas: list[tuple[int, str]], is_line: bool) -> str:
    line, bracket = commas[0]
    if is_line:
        return f"a comma before {bracket}; remove it"
    lines = list(dict.fromkeys(str(line) for line, _ in commas))[1:]
    more = ", .." if len(lines) > MAX_LINES_NAMED else ""
    others = f", and more in line{'s' * (len(lines) > 1)} {', '.join(lines[:MAX_LINES_NAMED])}{more}" if lines else ""
    return f"a comma before {bracket} in line {line}{others}; remove {'them' if len(commas) > 1 else 'it'}"


def _named(char: str) -> str:
    names = {"\n": "a line break", "\r": "a line break", "\t": "a tab", "\ufeff": "a byte order mark"}
    return f"{names.get(char, 'a character')} (U+{ord(char):04X})"
