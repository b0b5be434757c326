"""Conversation files: read one, check every record, and report all problems of the file together.

The format is described in data/README.md. Nothing here opens a picture or needs a tokenizer.
"""

import codecs
import functools
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from qwen_vl.model.image_processing_qwen import find_picture, is_local

logger = logging.getLogger(__name__)

MAX_SHOWN = 20  # problems that an error spells out; the rest is counted by kind
GRID = 1000  # coordinates are whole numbers in [0, GRID)
ROLES = ("user", "assistant")
RECORD_KEYS = {"id", "conversations"}
TURN_KEYS = {"from", "value"}

# What other formats call the same thing: with one of these, the error can name the cure.
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
OTHER_RECORD_KEYS = {"messages": "conversations", "conversation": "conversations"}
OTHER_TURN_KEYS = {"role": "from", "content": "value", "text": "value"}

TAG = re.compile(r"<(/?)(img|ref|box|quad|imgpad)>")
POINT = r"\((-?[0-9]{1,9}),(-?[0-9]{1,9})\)"
SHAPES = {  # tag -> (how it is written, pattern)
    "box": ("<box>(x1,y1),(x2,y2)</box>", re.compile(f"{POINT},{POINT}")),
    "quad": ("<quad>(x1,y1),(x2,y2),(x3,y3),(x4,y4)</quad>", re.compile(",".join([POINT] * 4))),
}
DATA_URI = re.compile(r"data:[^,]*;base64,[^\s<]", re.IGNORECASE)


class DataError(ValueError):
    """A data file that cannot be trained on; the message lists what is wrong, where, and what to do."""


def search_dirs(path, image_folder=None):
    """The folders where a relative picture is looked for, in order: that of the data file, `image_folder`, the cwd."""
    folders = [os.path.dirname(os.path.abspath(path)), image_folder and os.path.abspath(image_folder), os.getcwd()]
    return list(dict.fromkeys(folder for folder in folders if folder))


def read(path, *, image_folder=None, check_pictures=True):
    """The conversations of a JSON or JSON Lines file: a list of {"id", "conversations": [{"from", "value"}, ..]}.

    Records come as they are in the file; one without an id gets its place in the file as id. With `check_pictures`
    every local picture must exist in one of `search_dirs(path, image_folder)`; none is opened.
    Raises DataError with all problems of the file, OSError if it cannot be read.
    """
    if image_folder and not os.path.isdir(image_folder):
        raise DataError(f"image folder {image_folder}: no such folder; correct --image_folder or leave it out")
    problems = _Problems(path, search_dirs(path, image_folder))
    entries = _parse(path, problems)
    checker = _Checker(problems, check_pictures)
    conversations = [checker.record(place, record) for place, record in entries]
    problems.raise_if_any(len(entries))
    checker.log_notes()
    return conversations


# ---- the file -------------------------------------------------------------------------------------------------------


def _parse(path, problems):
    """[(place, record), ..] of a file; place is "[3]" in a JSON list and ":4" (the line) in JSON Lines."""
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _is_json_lines(path, text):
            return _parse_lines(text, problems)
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
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}, line {line}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: empty; give a JSON list of conversations")
    return text


def _is_json_lines(path, text):
    """Whether text that is not one JSON value is meant as one object a line."""
    if Path(path).suffix == ".jsonl":
        return True
    first = text.lstrip().split("\n", 1)[0]
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(text, problems):
    """[(":line", record), ..]; a line that is not JSON becomes a problem of the file."""
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a string
        if not line.strip():
            continue
        try:
            entries.append((f":{number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.add("broken JSON", f":{number}", f"{_json_error(error)}; write one whole record on each line")
    return entries


def _json_error(error):
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    return f"not JSON that can be read ({error})"


def _not_a_list(content):
    """What to do with a JSON file that holds something else than a list."""
    if not isinstance(content, dict):
        return f"holds a {_kind(content)}, not a list; give a JSON list of conversations"
    if "conversations" in content:
        return "holds one conversation, not a list; put [ before it and ] after it"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if lists:
        return f"holds an object, not a list; save the list under its key {lists[0]!r} alone"
    return "holds an object, not a list; give a JSON list of conversations"


def _kind(value):
    """The JSON name of a value's type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


# ---- the problems ---------------------------------------------------------------------------------------------------


class _Problems:
    """Collects what is wrong with a file: the first MAX_SHOWN in full, the rest as counts by kind."""

    def __init__(self, path, folders):
        self.path, self.name, self.folders = path, Path(path).name, folders
        self.shown, self.counts, self.not_shown = [], Counter(), Counter()

    def add(self, kind, where, message):
        self.counts[kind] += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"  {self.name}{where}: {message}")
        else:
            self.not_shown[kind] += 1

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


class _Checker:
    """Checks records one by one. Problems go to `problems`; what is only worth knowing is counted in `notes`."""

    def __init__(self, problems, check_pictures):
        self.problems, self.check_pictures = problems, check_pictures
        self.notes, self.ids = Counter(), set()
        self.exists = functools.cache(lambda reference: find_picture(reference, problems.folders) is not None)

    def record(self, place, record):
        """The record itself, with an id if it had none. `place` is where it stands in the file."""
        if not isinstance(record, dict):
            self.problems.add("wrong type", place, f"a {_kind(record)}; use an object with id and conversations")
            return None
        if "id" not in record:
            record = {"id": f"{self.problems.name}{place}", **record}
        where = f"{place} (id {_shown(record['id'])})"
        self._id(where, record["id"])
        self._keys(where, record, RECORD_KEYS, OTHER_RECORD_KEYS, "record")
        turns = record.get("conversations")
        if isinstance(turns, list) and turns:
            self._turns(where, turns)
            self._picture_key(where, record, turns)
        elif "conversations" in record:
            self.problems.add("wrong type", f"{where}.conversations", "use a list of at least one user and one answer")
        return record

    def log_notes(self):
        for note, count in self.notes.most_common(MAX_SHOWN):
            logger.warning("%s: %s (%d times)", self.problems.path, note, count)

    def _id(self, where, value):
        if isinstance(value, bool) or not isinstance(value, str | int):
            self.problems.add("wrong type", f"{where}.id", f"a {_kind(value)}; use a string or a whole number")
        elif value in self.ids:
            self.notes["a record has the id of an earlier one"] += 1
        else:
            self.ids.add(value)

    def _keys(self, where, mapping, expected, others, name):
        """Expected keys must be there; a known name of another format is an error, any other key is ignored."""
        missing = expected - mapping.keys()
        for key in sorted(missing):
            other = next((theirs for theirs in mapping if others.get(theirs) == key), None)
            cure = f"rename {other!r} to {key!r}" if other else f"add {key!r}"
            self.problems.add("wrong key", where, f"no {key!r}; {cure}")
        for key in mapping.keys() - expected:
            if others.get(key) not in missing:
                self.notes[f"key {key!r} of a {name} is ignored"] += 1

    def _picture_key(self, where, record, turns):
        """Pictures under a key of their own, as in LLaVA's format, would silently not be seen."""
        keys = sorted(record.keys() & {"image", "images"})
        texts = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
        if keys and not any("<img>" in text for text in texts):
            message = "pictures stand in the text here; put <img>PATH</img> where the picture belongs (now <image>)"
            self.problems.add("wrong key", f"{where}.{keys[0]}", message)

    def _turns(self, where, turns):
        """Every turn, the order of their roles, and that there is an answer to learn."""
        roles = [self._turn(f"{where}.conversations[{index}]", turn) for index, turn in enumerate(turns)]
        for index in range(1, len(roles)):
            if roles[index] and roles[index] == roles[index - 1]:
                message = f"a second {roles[index]!r} turn in a row; join the two, or put the missing turn between them"
                self.problems.add("wrong order", f"{where}.conversations[{index}].from", message)
        if roles[0] == "assistant":
            self.notes["an assistant turn before the first user turn is dropped"] += 1
        if None in roles:
            return
        if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            message = "no assistant turn after a user turn, so nothing to learn; add the answer or leave the record out"
            self.problems.add("nothing to learn", f"{where}.conversations", message)

    def _turn(self, where, turn):
        """The role of a turn, or None where that is wrong."""
        if not isinstance(turn, dict):
            self.problems.add("wrong type", where, f"a {_kind(turn)}; use an object with from and value")
            return None
        self._keys(where, turn, TURN_KEYS, OTHER_TURN_KEYS, "turn")
        role = turn.get("from")
        if "from" in turn and role not in ROLES:
            better = OTHER_ROLES.get(role) if isinstance(role, str) else None
            cure = f"use {better!r}" if better else "use 'user' or 'assistant'"
            self.problems.add("wrong role", f"{where}.from", f"{_shown(role)}; {cure}")
        if "value" in turn:
            self._value(f"{where}.value", role, turn["value"])
        return role if role in ROLES else None

    def _value(self, where, role, text):
        if not isinstance(text, str):
            cure = "write pictures into one string as <img>PATH</img>" if isinstance(text, list) else "use a string"
            self.problems.add("wrong type", where, f"a {_kind(text)}; {cure}")
            return
        if role == "assistant" and not text.strip():
            self.problems.add("empty answer", where, "empty; give the answer or leave the turn out")
        if not _is_unicode(text):
            self.problems.add("broken text", where, "holds half of a surrogate pair; write the file as UTF-8 again")
        if "<" in text:
            for kind, message in self._tags(text):
                self.problems.add(kind, where, message)

    def _tags(self, text):
        """(kind, message) of every wrong span. A tag without its partner ends the search: what follows is guesswork."""
        opened, start = None, 0
        for match in TAG.finditer(text):
            closing, name = match.groups()
            if name == "imgpad":
                yield "unpaired tag", f"{match.group()} at character {match.start()} is reserved; remove it"
                return
            if opened is None and not closing:
                opened, start = name, match.end()
            elif opened == name and closing:
                yield from self._span(name, text[start : match.start()])
                opened = None
            else:
                place = f"{match.group()} at character {match.start()}"
                outside = f"{place} inside <{opened}>; close that with </{opened}> first"
                yield "unpaired tag", outside if opened else f"{place} closes nothing; remove it or open it before"
                return
        if opened:
            yield "unpaired tag", f"<{opened}> at character {start - len(opened) - 2} is never closed; add </{opened}>"

    def _span(self, name, content):
        if name == "img":
            yield from self._picture(content)
        elif name in SHAPES:
            yield from _shape(name, content)

    def _picture(self, reference):
        if not reference.strip():
            yield "bad picture", "<img></img> is empty; put a path, an http(s) address or a data: URI between"
        elif not is_local(reference):
            if not _is_address(reference):
                cure = "use a path, http(s)://host/.. or data:image/png;base64,.."
                yield "bad picture", f"picture {_shown(reference)}: {cure}"
        elif self.check_pictures and not self.exists(reference):
            yield "missing picture", f"picture {_shown(reference)}: no such file"


def _is_unicode(text):
    """False where a JSON escape left half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_address(reference):
    """Whether a reference that is no path is written as one that can be opened; nothing is fetched."""
    if reference[:5].lower() == "data:":
        return DATA_URI.match(reference) is not None
    try:
        parts = urlsplit(reference)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _shape(name, content):
    """(kind, message) for a box or quadrilateral that is malformed, off the grid, or has its corners swapped."""
    form, pattern = SHAPES[name]
    match = pattern.fullmatch(content)
    if match is None:
        cure = f"write {form} with whole numbers from 0 to {GRID - 1}, no spaces"
        yield "malformed box", f"{name} {_shown(content)}; {cure}"
        return
    numbers = [int(number) for number in match.groups()]
    if not all(0 <= number < GRID for number in numbers):
        cure = (
            f"coordinates go from 0 to {GRID - 1}: min({GRID - 1}, int(x * {GRID} / width)), the same for y and height"
        )
        yield "box off the grid", f"{name} {content}; {cure}"
    elif name == "box" and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
        yield "swapped corners", f"box {content}; give the top left corner first, then the bottom right one"


def _shown(value):
    """A value for an error: quoted and short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}.. ({len(text)} characters)"
