"""Suggestions for flags and keys that do not exist."""

import difflib
from collections.abc import Iterable, Sequence

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # a word processor turns two dashes into a long one


def is_flag(word: str) -> bool:
    """Return whether a word of a command line was meant as a flag, not as the value of one."""
    return word.startswith(tuple(DASHES)) or "=" in word


def suggestion(word: str, flags: Iterable[str], *, mark: str = "") -> str:
    """Return ' (did you mean --x?)' for a word that is close to a flag, ' (write x)' for other dashes or letters.

    flags: the known ones, with dashes. mark: the prefix of a flag where the word was found. A value after = is ignored.
    """
    names = {flag.lstrip("-").replace("-", "_") for flag in flags}
    bare = word.partition("=")[0].lstrip(DASHES).replace("-", "_").lower()
    if bare in names:
        return f" (write {mark}{bare})"
    close = difflib.get_close_matches(bare, names, n=1)
    return f" (did you mean --{close[0]}?)" if close else ""


def unknown_arguments(words: Sequence[str], flags: Iterable[str]) -> str:
    """Return an error message that names words of a command line that are not known, with suggestions."""
    said = [word + (suggestion(word, flags, mark="--") if is_flag(word) else "") for word in words]
    return "unknown argument " + ", ".join(said)
