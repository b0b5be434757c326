"""Hints on why a path that looks right is not found: invisible characters, quotes, spellings of another system."""

import os
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote

DRIVE = re.compile(r"[A-Za-z]:[\\/]")
PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
QUOTES = "\"'`“”‘’«»"
MAX_NAMED = 3  # invisible characters that a message names
Exists = Callable[[str], bool]


def hint(path: str, exists: Exists) -> str:
    """Return what may be wrong with a path that is not found, as the end of an error; "" if nothing looks wrong.

    exists(path): whether a path exists. It is called with corrected paths.
    """
    causes, fixed = [], path
    for repair in (_invisible, _spaces, _quotes, _backslashes, _decomposed):
        cause, fixed = repair(fixed)
        causes += [cause] if cause else []
    found = fixed if fixed != path and exists(fixed) else None
    if found is None:
        cause, found = _other_spelling(fixed, exists)
        causes += [cause] if cause else []
    if found is not None:
        causes.append(f"{found!r} is there")
    return "".join(f"; {cause}" for cause in causes)


def visible(text: str) -> str:
    """Return the text with an escape for each invisible character."""
    return "".join(_escape(char) if is_invisible(char) else char for char in text)


def is_invisible(char: str) -> bool:
    """Return whether a character is invisible, or looks like a space without being one."""
    kind = unicodedata.category(char)
    return kind in ("Cc", "Cf", "Zl", "Zp") or (kind == "Zs" and char != " ") or "\ufe00" <= char <= "\ufe0f"


def invisible_in(text: str) -> list[str]:
    """Return a description of each invisible character of a text, with its place; at most MAX_NAMED of them."""
    places = [index for index, char in enumerate(text) if is_invisible(char)]
    named = [f"{_code_point(text[index])} at character {index}" for index in places[:MAX_NAMED]]
    rest = len(places) - len(named)
    return named + ([f"{rest} more"] if rest else [])


def _code_point(char: str) -> str:
    return f"U+{ord(char):04X} {unicodedata.name(char, 'a control character').lower()}"


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


# Each of these returns (cause or "", the path without it).


def _invisible(path: str) -> tuple[str, str]:
    found = invisible_in(path)
    if not found:
        return "", path
    # A space of another kind stands for a space within a path, and for nothing at its ends.
    fixed = "".join(" " if unicodedata.category(c) == "Zs" else "" if is_invisible(c) else c for c in path)
    return f"it holds {' and '.join(found)}, which is invisible: remove it", fixed.strip()


def _spaces(path: str) -> tuple[str, str]:
    fixed = path.strip(" ")
    return ("it begins or ends with a space: remove it" if fixed != path else ""), fixed


def _quotes(path: str) -> tuple[str, str]:
    if len(path) > 2 and path[0] in QUOTES and path[-1] in QUOTES:
        return "it stands in quotes: remove them", path[1:-1]
    return "", path


def _backslashes(path: str) -> tuple[str, str]:
    if os.sep == "\\":
        return "", path
    if DRIVE.match(path):
        return "a path of Windows: write that of the file on this machine, with /", path.replace("\\", "/")
    return ("write / in paths, not \\" if "\\" in path else ""), path.replace("\\", "/")


def _decomposed(path: str) -> tuple[str, str]:
    composed = unicodedata.normalize("NFC", path)
    if composed == path:
        return "", path
    marks = [char for char in path if unicodedata.combining(char)]
    shown = f" such as {_code_point(marks[0])}" if marks else ""
    cause = f"it holds decomposed characters{shown} (Unicode NFD, as macOS writes names)"
    return f'{cause}: use unicodedata.normalize("NFC", path), or rename the file', composed


def _other_spelling(path: str, exists: Exists) -> tuple[str, str | None]:
    """Return (cause, path) of a file whose name is spelled a little differently; ("", None) if there is none."""
    decomposed = unicodedata.normalize("NFD", path)
    if decomposed != path and exists(decomposed):
        cure = 'rename it, or use unicodedata.normalize("NFD", path)'
        return f"the file's own name is decomposed (Unicode NFD, as macOS writes names): {cure}", decomposed
    root, suffix = os.path.splitext(path)
    for other in (path.lower(), root + suffix.lower(), root + suffix.upper()):
        if other != path and exists(other):
            return "its name has other capital letters", other
    for other in (unquote(path) if PERCENT.search(path) else path, os.path.expanduser(path)):
        if other != path and exists(other):
            return "% and ~ stand for themselves in a path", other
    return "", None
