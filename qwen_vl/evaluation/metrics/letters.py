"""Which option a free answer means: its letter, read by rules that never guess."""

import re
import string
from collections.abc import Sequence

from qwen_vl.evaluation.metrics.breakdown import text_of
from qwen_vl.evaluation.metrics.result import Pair

OPEN, CLOSE = r"[(\[（【]?", r"[)\]）】]?"
WHOLE = re.compile(rf"{OPEN}\s*([A-Za-z])\s*{CLOSE}\s*[.:：。)]?")
# Letters of a word, and of "T-shirt" or "D'Arcy", are no letters of options; Chinese may stand right beside one.
ALONE = r"(?<![A-Za-z0-9])(?<![A-Za-z0-9]['’-])([A-Z])(?![A-Za-z0-9])(?!['’-][A-Za-z0-9])"
TOKEN = re.compile(ALONE)
ARTICLE = re.compile(r"A[ \t]+(?!is\b)(?=[A-Za-z0-9])")  # "A dog", but not "A is right", "A. dog", "A\ndog"
SAYS = r"(?:[Aa]nswer\s+is|ANSWER\s+IS|答案(?:是|为))\s*[:：]?\s*"
ANSWER_IS = re.compile(SAYS + OPEN + r"\s*" + ALONE)
BRACKETED = re.compile(SAYS + r"[(\[（【]\s*([A-Za-z])\s*[)\]）】]")  # "(b)", too


def option_letter(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter (A, B, ..) of the option that a free answer names, None if the rules find none or several.

    The rules, in this order: the whole answer is a letter, perhaps in brackets or with one of `. : )`; else it says
    "answer is X"; else exactly one option letter stands in it as a token of its own (a leading article "A" in a longer
    sentence is none); else the answer is an option's text, or exactly one option's text is contained in it, case apart.
    """
    letters = string.ascii_uppercase[: len(options)]
    text = answer.strip()
    whole = WHOLE.fullmatch(text)
    if whole and whole[1].upper() in letters:
        return whole[1].upper()
    for found in (ANSWER_IS.findall(text) + BRACKETED.findall(text), _tokens(text)):
        named = {letter.upper() for letter in found} & set(letters)
        if len(named) == 1:
            return named.pop()
    return _named_by_text(text, options)


def _tokens(text: str) -> list[str]:
    return TOKEN.findall(ARTICLE.sub("", text, count=1) if ARTICLE.match(text) else text)


def _named_by_text(text: str, options: Sequence[str]) -> str | None:
    said, texts = text.casefold(), [option.strip().casefold() for option in options]
    equal = [place for place, option in enumerate(texts) if option and option == said]
    contained = [place for place, option in enumerate(texts) if option and option in said]
    for places in (equal, contained):
        if len(places) == 1:
            return string.ascii_uppercase[places[0]]
    return None


def chosen_option(pair: Pair) -> int | None:
    """Return the place of the option that an answer chose: by ranking, else by the letter read from its text."""
    if pair.answer.choice is not None:
        return pair.answer.choice
    letter = option_letter(text_of(pair), pair.record.options)
    return None if letter is None else string.ascii_uppercase.index(letter)


def right_option(pair: Pair) -> int:
    """Return the place of the right option: `answers` has its letter or its text. Raise ValueError if neither."""
    record = pair.record
    answer = record.answers[0].strip()
    letters = string.ascii_uppercase[: len(record.options)]
    if len(answer) == 1 and answer in letters:
        return letters.index(answer)
    texts = [option.strip() for option in record.options]
    if answer in texts:
        return texts.index(answer)
    raise ValueError(
        f"record {record.id!r}: its answer {record.answers[0]!r} is neither a letter of its {len(texts)} options nor "
        "the text of one; correct it in the file"
    )


def letter_of(place: int | None) -> str:
    """Return the letter of an option's place; an empty text for None."""
    return "" if place is None else string.ascii_uppercase[place]
