"""Conversation files: read one, check every record, and report all problems of the file together.

The format is described in data/README.md. Nothing here opens a picture or needs a tokenizer.
"""

import codecs
import functools
import json
import logging
import os
from collections import Counter
from pathlib import Path

from qwen_vl.model.image_processing_qwen import find_picture

from .skipping import SkipManifest, own_id
from .validation import DataError, Problem, check_record, kind_of

logger = logging.getLogger(__name__)

MAX_SHOWN = 20  # problems that an error spells out; the rest is counted by kind


def search_dirs(path, image_folder=None):
    """The folders where a relative picture is looked for, in order: that of the data file, `image_folder`, the cwd."""
    folders = [os.path.dirname(os.path.abspath(path)), image_folder and os.path.abspath(image_folder), os.getcwd()]
    return list(dict.fromkeys(folder for folder in folders if folder))


def read(path, *, image_folder=None, check_pictures=True, skip_manifest=None):
    """The conversations of a JSON or JSON Lines file: a list of {"id", "conversations": [{"from", "value"}, ..]}.

    Records come as they are in the file; one without an id gets its place in the file as id. With `check_pictures`
    every local picture must exist in one of `search_dirs(path, image_folder)`; none is opened.
    skip_manifest: a file that `qwen-vl data check --fix` wrote for this one; exactly its records are left out.
    Raises DataError with all problems of the file, OSError if it cannot be read.
    """
    check_folder(image_folder)
    folders = search_dirs(path, image_folder)
    exists = functools.cache(lambda reference: find_picture(reference, folders) is not None)
    skips = SkipManifest(skip_manifest, path) if skip_manifest else None
    problems, seen, conversations = _Problems(path, folders), set(), []
    for place, record in entries(path):
        if skips and skips.takes(place, record):
            continue
        record = named(path, place, record)
        conversations.append(record)
        for problem in check_entry(place, record, exists if check_pictures else None):
            problems.add(problem)
        if is_repeated(own_id(record), seen):
            problems.add(Problem(place, record["id"], "id", "same id", "a record has the id of an earlier one"))
    if skips:
        skips.finish(num_kept=len(conversations))
    problems.raise_if_any(len(conversations))
    problems.log_warnings()
    return conversations


def check_folder(image_folder):
    """DataError if the folder is given and not there."""
    if image_folder and not os.path.isdir(image_folder):
        raise DataError(f"image folder {image_folder}: no such folder; correct --image_folder or leave it out")


def named(path, place, record):
    """The record with its place in the file as id if it has none; what is no record comes back as it is."""
    if isinstance(record, dict) and "id" not in record:
        return {"id": f"{Path(path).name}{place}", **record}
    return record


def check_entry(place, record, exists=None):
    """The Problems of what `entries` yields at `place`, as `validation.check_record` does."""
    return [record] if isinstance(record, Problem) else check_record(place, record, exists)


def is_repeated(name, seen):
    """Whether an id, or None for none, is in the set `seen`; puts it in."""
    if name is None:
        return False
    repeated = name in seen
    seen.add(name)
    return repeated


# ---- the file -------------------------------------------------------------------------------------------------------


def entries(path):
    """Yields (place, record) for each record of a file; place is "[3]" in a JSON list, ":4" (the line) in JSON Lines.

    A line that is not JSON comes as the Problem that it is. A file that is named .jsonl and is one is read line by
    line, so that it need not fit into memory. Raises DataError where the file as a whole cannot be used, OSError.
    """
    if Path(path).suffix == ".jsonl" and _begins_with_an_object(path):
        with open(path, "rb") as file:
            yield from _parse_lines(_decoded(path, file))
    else:
        yield from _parse(path)


def _begins_with_an_object(path):
    """Whether the first line that is not blank holds one whole JSON object."""
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"")
    return _is_object(first.removeprefix(codecs.BOM_UTF8))


def _decoded(path, file):
    """The lines of an open UTF-8 file as text, without a byte order mark."""
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start, line[error.start], number) from None
        offset += len(line)


def _parse(path):
    """[(place, record), ..] of a file that is read as a whole."""
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if Path(path).suffix == ".jsonl" or _is_object(text.lstrip().split("\n", 1)[0]):
            return _parse_lines(text.split("\n"))  # not splitlines: U+2028 may stand inside a string
        raise DataError(f"{path}: {_json_error(error)}; correct it there, or write the file with json.dump") from None
    if isinstance(content, dict) and Path(path).suffix == ".jsonl":
        return [(":1", content)]
    if not isinstance(content, list):
        raise DataError(f"{path}: {_not_a_list(content)}")
    if not content:
        raise DataError(f"{path}: an empty list; give at least one conversation")
    return [(f"[{index}]", record) for index, record in enumerate(content)]


def _text(path):
    """The text of a UTF-8 file, without a byte order mark."""
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, error.start, content[error.start], line) from None
    if not text.strip():
        raise DataError(f"{path}: empty; give a JSON list of conversations")
    return text


def _not_utf8(path, position, byte, line):
    return DataError(f"{path}: not UTF-8 at byte {position} (0x{byte:02x}, line {line}); save it as UTF-8")


def _is_object(line):
    """Whether a line, text or bytes, is one whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(lines):
    """Yields (":line", record) for every line that is not blank; one that is not JSON comes as a Problem."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f":{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            message = f"{_json_error(error)}; write one whole record on each line"
            yield f":{number}", Problem(f":{number}", None, "", "broken JSON", message)


def _json_error(error):
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    return f"not JSON that can be read ({error})"


def _not_a_list(content):
    """What to do with a JSON file that holds something else than a list."""
    if not isinstance(content, dict):
        return f"holds a {kind_of(content)}, not a list; give a JSON list of conversations"
    if "conversations" in content:
        return "holds one conversation, not a list; put [ before it and ] after it"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if lists:
        return f"holds an object, not a list; save the list under its key {lists[0]!r} alone"
    return "holds an object, not a list; give a JSON list of conversations"


# ---- the problems ---------------------------------------------------------------------------------------------------


class _Problems:
    """Collects what is wrong with a file: the first MAX_SHOWN errors in full, the rest as counts by kind."""

    def __init__(self, path, folders):
        self.path, self.name, self.folders = path, Path(path).name, folders
        self.shown, self.counts, self.not_shown, self.warnings = [], Counter(), Counter(), Counter()

    def add(self, problem):
        if not problem.is_error:
            self.warnings[problem.message] += 1
            return
        self.counts[problem.kind] += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"  {self.name}{problem}")
        else:
            self.not_shown[problem.kind] += 1

    def raise_if_any(self, num_records):
        total = self.counts.total()
        if not total:
            return
        lines = [f"{self.path}: {total} problem{'s' * (total > 1)} in {num_records} records", *self.shown]
        if self.not_shown:
            by_kind = ", ".join(f"{count} {kind}" for kind, count in self.not_shown.most_common())
            lines.append(f"  and {self.not_shown.total()} more: {by_kind}")
        if self.counts["missing picture"]:
            folders = ", ".join(self.folders)
            lines.append(f"  Pictures were looked for in {folders}; correct the paths or give --image_folder.")
        raise DataError("\n".join(lines))

    def log_warnings(self):
        for message, count in self.warnings.most_common(MAX_SHOWN):
            logger.warning("%s: %s (%d times)", self.path, message, count)
