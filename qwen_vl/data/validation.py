"""The validator of conversation records, used by `conversations.read`, the stream and `qwen-vl data check`.

The format is described in docs/data.md and, as far as a schema can say it, in data/conversation.schema.json.
Nothing here opens an image or needs a tokenizer.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qwen_vl.model.image_loading_qwen import is_local

from . import markup, path_hints

CELL_SCHEME = "table://"  # of an image in a table, see `images`
GRID = 1000  # coordinates are whole numbers in [0, GRID)
ROLES = ("user", "assistant")
# Kinds of problems. An error stops a run, a warning does not.
ERRORS = {
    "broken JSON",
    "wrong type",
    "wrong key",
    "wrong value",
    "wrong role",
    "wrong order",
    "nothing to learn",
    "empty answer",
    "broken text",
    "unpaired tag",
    "bad image",
    "missing image",
    "broken image",
    "malformed box",
    "box off the grid",
    "swapped corners",
}
WARNINGS = {
    "ignored key",
    "foreign markup",
    "leading answer",
    "same id",
    "same conversation",
    "over length",
    "rotated image",
    "odd image",
    "scaled image",
}

# (required keys, optional keys, {key of another format: our key}, so that an error can name the right key)
KEYS = {
    "record": (
        {"conversations"},
        {"id", "system", "weight", "metric", "category", "references"},  # the last three: evaluation/readers
        {"messages": "conversations", "conversation": "conversations"},
    ),
    "turn": ({"from", "value"}, {"loss"}, {"role": "from", "content": "value", "text": "value"}),
}
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
OTHER_CURES = {
    "system": "use 'user' or 'assistant'; a system message is no turn: put its text under the record's key 'system'",
    "tool": "use 'user' or 'assistant'; tools cannot be trained on, leave the record out",
}

TAG = re.compile(r"<(/?)(img|ref|box|quad|imgpad)>")
POINT = r"\((-?[0-9]{1,9}),(-?[0-9]{1,9})\)"
SHAPES = {  # tag -> (how it is written, pattern)
    "box": ("<box>(x1,y1),(x2,y2)</box>", re.compile(f"{POINT},{POINT}")),
    "quad": ("<quad>(x1,y1),(x2,y2),(x3,y3),(x4,y4)</quad>", re.compile(",".join([POINT] * 4))),
}
Exists = Callable[[str], bool]  # whether a local image exists
Finding = tuple[str, str]  # (kind, message)
PlacedFinding = tuple[str, str, str]  # (field, kind, message)
DATA_URI = re.compile(r"data:[^,]*;base64,[^\s<]", re.IGNORECASE)


class DataError(ValueError):
    """A data file that cannot be trained on; the message lists what is wrong, where, and what to do."""


class FieldError(ValueError):
    """A record that cannot be converted: its id, the field in it, and what is wrong and what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.id: str | int | None = None


class Problem(NamedTuple):
    """One thing that is wrong, or only worth knowing, in a data file."""

    place: str  # of the record: "[3]" in a JSON list, ":4" (the line) in JSON Lines, "" for the file itself
    id: object  # of the record, None where it has none
    field: str  # in the record, such as "conversations[0].from"; "" for the record itself
    kind: str
    message: str  # what is wrong and what to do

    @property
    def is_error(self) -> bool:
        """Return whether a run would stop at it."""
        return self.kind not in WARNINGS

    def __str__(self) -> str:
        name = "" if self.id is None else f" (id {shown(self.id)})"
        field = f".{self.field}" if self.field else ""
        return f"{self.place}{name}{field}: {self.message}"


def check_record(place: str, record: object, exists: Exists | None = None) -> list[Problem]:
    """Return the Problems of one record, in the order of its fields; [] if it is correct.

    place: of the record in the file. exists(reference): whether a local image exists; None to skip this check.
    The caller, who knows the other records, checks that ids are unique.
    """
    if not isinstance(record, dict):
        message = f"a {kind_of(record)}; use an object with id and conversations"
        return [Problem(place, None, "", "wrong type", message)]
    return [Problem(place, record.get("id"), *found) for found in _record(record, exists)]


# The generators below yield (field, kind, message), or (kind, message) if the caller knows the field.


def _given(name: str, mapping: dict) -> dict:
    """Return a record or turn without its null values, which count as absent, unless the key is required."""
    required, _, _ = KEYS[name]
    return {key: value for key, value in mapping.items() if value is not None or key in required}


def _record(record: dict[str, Any], exists: Exists | None) -> Iterator[PlacedFinding]:
    """Check the fields of a record."""
    record = _given("record", record)
    identifier = record.get("id", "")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        yield "id", "wrong type", f"a {kind_of(identifier)}; use a string or a whole number"
    yield from (("", *found) for found in _keys("record", record))
    if "system" in record:
        yield from (("system", *found) for found in _text(record["system"], exists))
    if "weight" in record and not _is_weight(record["weight"]):
        yield "weight", "wrong value", f"{shown(record['weight'])}; use a number above 0, or leave it out for 1"
    turns = record.get("conversations")
    if isinstance(turns, list) and turns:
        yield from _turns(turns, exists)
        yield from _image_key(record, turns)
    elif "conversations" in record:
        yield "conversations", "wrong type", _no_turns(turns)


def _no_turns(value: object) -> str:
    """Return what to do with a value that is not a list of turns."""
    cure = "use a list of at least one user and one answer"
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return f"a string that is not JSON, but perhaps a list as Python prints it; {cure}, or write it with json.dumps"
    if isinstance(value, dict):
        return f'an object; {cure}. Columns of pandas? Write them with to_json(.., orient="records")'
    return cure if value == [] else f"a {kind_of(value)}; {cure}"


def _is_weight(value: object) -> bool:
    """Return whether a value can be the weight of a sample's loss."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _keys(name: str, mapping: Mapping[str, object]) -> Iterator[Finding]:
    """Check keys: a required one must exist, one of another format is an error, any other is ignored."""
    required, optional, others = KEYS[name]
    if required <= mapping.keys() and len(mapping) == len(required):
        return  # in most records
    missing = required - mapping.keys()
    for key in sorted(missing):
        other = next((theirs for theirs in mapping if others.get(theirs) == key), None)
        similar = next((theirs for theirs in mapping if _bare(theirs) == key), None)
        cure = f"rename {other!r} to {key!r}" if other else f"add {key!r}"
        if similar:
            cure = f"there is {similar!r}, with {_unseen(similar)}; rename it"
        yield "wrong key", f"no {key!r}; {cure}"
    for key in mapping.keys() - required - optional:
        if others.get(key) not in missing and _bare(key) not in missing:
            is_image = name == "record" and key in markup.IMAGE_KEYS
            cure = "; images stand in the text, as <img>PATH</img>" if is_image else ""
            yield "ignored key", f"key {key!r} of a {name} is ignored{cure}"


def _bare(text: str) -> str:
    """Return a key or role in lower case, without invisible characters."""
    return "".join(char for char in text if not path_hints.is_invisible(char)).strip().lower()


def _unseen(text: str) -> str:
    """Return how a text differs from its `_bare` form."""
    return " and ".join(path_hints.invisible_in(text)) or "capital letters or spaces"


def _image_key(record: Mapping[str, Any], turns: Sequence[Any]) -> Iterator[PlacedFinding]:
    """Check that no images are under a key, as in LLaVA's format; the model would not see them, without an error."""
    keys = sorted(record.keys() & {"image", "images"})
    texts = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    if keys and not any("<img>" in text for text in texts):
        message = "images stand in the text here; put <img>PATH</img> where the image belongs (now <image>)"
        yield keys[0], "wrong key", message


def _turns(turns: Sequence[Any], exists: Exists | None) -> Iterator[PlacedFinding]:
    """Check every turn, the order of the roles, and that there is an answer to learn."""
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        yield from ((f"{where}{field}", kind, message) for field, kind, message in _turn(turn, exists))
    roles = [_role(turn) for turn in turns]
    for index in range(1, len(roles)):
        if roles[index] and roles[index] == roles[index - 1]:
            message = f"a second {roles[index]!r} turn in a row; join the two, or put the missing turn between them"
            yield f"conversations[{index}].from", "wrong order", message
    if roles[0] == "assistant":
        yield "conversations", "leading answer", "an assistant turn before the first user turn is dropped"
    if None in roles:
        return
    answers = turns[roles.index("user") :] if "user" in roles else []
    answers = [turn for turn in answers if turn["from"] == "assistant"]
    if not answers:
        message = "no assistant turn after a user turn, so nothing to learn; add the answer or leave the record out"
        yield "conversations", "nothing to learn", message
    elif all(turn.get("loss") is False for turn in answers):
        message = 'every answer has "loss": false, so nothing to learn; allow one or leave the record out'
        yield "conversations", "nothing to learn", message


def _role(turn: object) -> str | None:
    """Return the role of a turn, or None if it is not one of ROLES."""
    role = turn.get("from") if isinstance(turn, dict) else None
    return role if role in ROLES else None


def _turn(turn: object, exists: Exists | None) -> Iterator[PlacedFinding]:
    """Check the fields of a turn; the fields begin with a dot."""
    if not isinstance(turn, dict):
        yield "", "wrong type", f"a {kind_of(turn)}; use an object with from and value"
        return
    turn = _given("turn", turn)
    yield from (("", *found) for found in _keys("turn", turn))
    role = turn.get("from")
    if "from" in turn and role not in ROLES:
        yield ".from", "wrong role", f"{shown(role)}; {_other_role(role)}"
    if "value" in turn:
        yield from ((".value", *found) for found in _value(role, turn["value"], exists))
    if not isinstance(turn.get("loss", True), bool):
        yield ".loss", "wrong type", f"a {kind_of(turn['loss'])}; use true or false"


def _other_role(role: object) -> str:
    """Return what to do with a role that is not one of ours."""
    if not isinstance(role, str):
        return "use 'user' or 'assistant'"
    bare = _bare(role)
    if bare in ROLES:
        return f"use {bare!r}; this has {_unseen(role)}"
    if bare in OTHER_CURES or bare in ("function", "observation"):
        return OTHER_CURES["system" if bare == "system" else "tool"]
    return f"use {OTHER_ROLES[bare]!r}" if bare in OTHER_ROLES else "use 'user' or 'assistant'"


def _value(role: object, value: object, exists: Exists | None) -> Iterator[Finding]:
    """Check the text of a turn."""
    if role == "assistant" and isinstance(value, str) and not value.strip():
        yield "empty answer", "empty; give the answer or leave the turn out"
    yield from _text(value, exists)


def _text(value: object, exists: Exists | None) -> Iterator[Finding]:
    """Check a text: its type, characters, tags, and markup of other formats."""
    if not isinstance(value, str):
        cure = "write images into one string as <img>PATH</img>" if isinstance(value, list) else "use a string"
        yield "wrong type", f"a {kind_of(value)}; {cure}"
        return
    if not _is_unicode(value):
        yield "broken text", "holds half of a surrogate pair; write the file as UTF-8 again"
    if "<" in value:
        yield from _tags(value, exists)
    yield from (("foreign markup", markup.advice(mark)) for mark in markup.found(value))


def _tags(text: str, exists: Exists | None) -> Iterator[Finding]:
    """Check every tagged span. Stop at an unpaired tag, because the spans after it are guesswork."""
    opened: str | None = None
    start = 0
    for match in TAG.finditer(text):
        closing, name = match.groups()
        if name == "imgpad":
            yield "unpaired tag", f"{match.group()} at character {match.start()} is reserved; remove it"
            return
        if opened is None and not closing:
            opened, start = name, match.end()
        elif opened == name and closing:
            yield from _span(name, text[start : match.start()], exists)
            opened = None
        else:
            place = f"{match.group()} at character {match.start()}"
            outside = f"{place} inside <{opened}>; close that with </{opened}> first"
            yield "unpaired tag", outside if opened else f"{place} closes nothing; remove it or open it before"
            return
    if opened:
        yield "unpaired tag", f"<{opened}> at character {start - len(opened) - 2} is never closed; add </{opened}>"


def _span(name: str, content: str, exists: Exists | None) -> Iterator[Finding]:
    if name == "img":
        yield from _image(content, exists)
    elif name in SHAPES:
        yield from _shape(name, content)


def _image(reference: str, exists: Exists | None) -> Iterator[Finding]:
    """Check the reference of an image."""
    if not reference.strip():
        yield "bad image", "<img></img> is empty; put a path, an http(s) address or a data: URI between"
    elif not is_local(reference) and not reference.startswith(CELL_SCHEME):
        if not is_address(reference):
            cure = "use a path, http(s)://host/.. or data:image/png;base64,.."
            yield "bad image", f"image {shown(reference)}: {cure}"
    elif exists and not exists(reference):
        cause = path_hints.hint(reference, exists)
        yield "missing image", f"image {path_hints.visible(shown(reference))}: no such file{cause}"


def is_address(reference: str) -> bool:
    """Return whether a reference that is not a path has a form that can be opened; nothing is fetched."""
    if reference[:5].lower() == "data:":
        return DATA_URI.match(reference) is not None
    try:
        parts = urlsplit(reference)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _shape(name: str, content: str) -> Iterator[Finding]:
    """Check that a box or quadrilateral is well-formed, on the grid, and has no swapped corners."""
    form, pattern = SHAPES[name]
    match = pattern.fullmatch(content)
    if match is None:
        cure = f"write {form} with whole numbers from 0 to {GRID - 1}, no spaces"
        yield "malformed box", f"{name} {shown(content)}; {cure}"
        return
    numbers = [int(number) for number in match.groups()]
    if not all(0 <= number < GRID for number in numbers):
        cure = (
            f"coordinates go from 0 to {GRID - 1}: min({GRID - 1}, int(x * {GRID} / width)), the same for y and height"
        )
        yield "box off the grid", f"{name} {content}; {cure}"
    elif name == "box" and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
        yield "swapped corners", f"box {content}; give the top left corner first, then the bottom right one"


def _is_unicode(text: str) -> bool:
    """Return False if a JSON escape left half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """Return the JSON name of a value's type, or Python's name for what only tables hold, such as bytes and dates."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(
        type(value), "number" if isinstance(value, int | float) else f"value of type {type(value).__name__}"
    )


def shown(value: object) -> str:
    """Return a value as an error shows it: quoted, short, and printable."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 80 else f"{text[:80]}.. ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()
