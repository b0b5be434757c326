"""Tokens of captions as Stanford's PTB tokenizer 3.4.1 makes them for CIDEr, without Java.

The rules were found by comparing outputs. They cover what captions hold, and not each oddity of the original.
"""

import re
from collections.abc import Callable
from functools import lru_cache

# Character classes, to stand in brackets
_LETTER = r"^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u218f\u2460-\u24ff\u2776-\u2793"  # \w without number signs
_MARK = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0901-\u0963\u0981-\u0d4d\u0e31-\u0e4e\u20dd"
_NO_URL = r"\s\"<>|()"
_NO_URL_END = r"\s\"<>|.!?(){},"
_APOSTROPHE = r"['\u2019\x92]"

_L = rf"(?:[{_LETTER}]|[{_MARK}])"
_W = rf"(?:[{_LETTER}]|[{_MARK}\d])"  # letter or digit
_HYPHEN = r"[-_\u058a\u2010\u2011]"
_NAME = r"[A-Za-z][\w:.-]*"  # in a tag
_EMAIL = rf"[A-Za-z0-9][^{_NO_URL}]*@(?:[^{_NO_URL}.]+\.)*[^{_NO_URL}.]+"
_PATH = rf"(?:/[^{_NO_URL}]+[^{_NO_URL_END}-])?"
_PREFIXED = rf"(?:[dDoOlL]{_APOSTROPHE}(?={_L}{{2}}))?{_W}+"  # o'clock, l'eau

# With a full stop that belongs to them, in lower case, with a capital or in capitals
_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc atty attys aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col
colo conn corp cos cpl ct dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov hon inc ind intl jan
jos jr jul jun kan kans ky lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct
okla penn pfc ph plc pres prof pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn
thu thurs tue tues univ va vs vt wed wis wm wyo
"""
_CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"  # in lower case they may be words
_LOWER_ABBREVIATIONS = "mfg mtg pte pty"
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
_STARTS_SENTENCE = """
a about according additionally after an as at but earlier he her here however if in it last many more now once one
other our she since so some such that the their then there these they this we what when while yet you
"""


def _spellings(words: str, *changes: Callable[[str], str]) -> str:
    return "|".join(change(word) for word in words.split() for change in changes)


_SENTENCE = re.compile(rf"\s+(?:{_spellings(_STARTS_SENTENCE, str.capitalize, str.upper)})\s")
_WHOLE = [  # tokens; the longest match counts, the first of two that are equally long
    rf"<{_NAME}(?:\s+{_NAME}(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>|</{_NAME}\s*>|<[!?][A-Za-z-][^<>]*>",
    rf"(?i:https?://)[^{_NO_URL}]+[^{_NO_URL_END}-]",
    rf"(?i:www\.(?:[^{_NO_URL_END}]+\.)+[a-z]{{2,4}}){_PATH}",
    rf"(?:{_L}+\.)+(?i:com|net|org|edu){_PATH}",
    rf"{_EMAIL}|<{_EMAIL}>",
    r"@[A-Za-z_][A-Za-z_0-9]*",
    rf"#{_L}+",
    r"\(\d{2,3}\)\s?\d{3,4}[-\s]?\d{4}(?!\d)",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    r"(?:\d{1,4}-)?\d{1,4}/\d{1,4}",
    r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",
    r"\d+(?:\.\d+)*\.[xX](?=\.?(?:\s|$))",  # a version
    rf"{_L}{_W}*(?:[.!?]{_L}{_W}*)*",
    rf"{_PREFIXED}(?:{_HYPHEN}{_PREFIXED})*",
    r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+",
    rf"(?:{_spellings(_ABBREVIATIONS, str.lower, str.capitalize, str.upper)})\.",
    rf"(?:{_spellings(_CAPITAL_ABBREVIATIONS, str.capitalize, str.upper)})\.",
    rf"(?:{_spellings(_LOWER_ABBREVIATIONS, str.lower, str.capitalize)})\.",
    rf"(?:{_spellings(_BEFORE_NUMBER, str.lower, str.capitalize, str.upper)})\.(?=\s*\d)",
    rf"[A-Za-z]\.(?!{_SENTENCE.pattern})",
    r"[A-Za-z](?:\.[A-Za-z])+\.|(?i:ph\.d)\.",
    rf"{_W}+(?:\.{_L}{_W}*)*\.(?=[,;:\u3001])",  # no sentence ends before a comma
    # apostrophes inside of words
    rf"(?i:ma{_APOSTROPHE}am|[oe]{_APOSTROPHE}(?:o|er)|(?:dunkin|somethin|ol){_APOSTROPHE}|nat{_APOSTROPHE}l|li{_APOSTROPHE}l)",
    rf"(?i:c{_APOSTROPHE}(?:est|mon)|cap{_APOSTROPHE}n|s{_APOSTROPHE}mores|ev{_APOSTROPHE}ry|nor{_APOSTROPHE}easter)",
    rf"[dDjJlLyY]{_APOSTROPHE}",
    rf"[A-HJ-XZn]{_APOSTROPHE}{_L}{{2,}}",
    rf"{_L}+[aeiouyAEIOUY]{_APOSTROPHE}(?![DMS](?!{_L}))[aeiouA-Z]{_L}*",
    rf"{_APOSTROPHE}(?i:n{_APOSTROPHE}|(?:em|cause|till?|n)(?!{_L}))|{_APOSTROPHE}[2-9]0s",
    rf"{_APOSTROPHE}\d\d(?=[\s.,;:!?)]|$)",
    # signs
    r"[<>]?[:;=]'?[-o]?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])",
    r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)",
    r"(?:A|C|HK|M|NT|NZ|R|S|US)\$",
    r"[Cc]\+\+|[CcFf]#",
    r"[?!]+|\*+|#+|@+|_+|<<|>>|-{2,}|\.{3}",
    r"&(?:amp|lt|gt);|&#\d+;|&[A-Z]{2};",
    r"[$%&~^=+|/\\<>()\[\]{}\u0080\u00a1-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bc-\u00bf\u00d7\u00f7\u037e\u0387]",
    r"[\u0589\u060c\u061b\u066a\u066d\u06d4\u0964\u0965\u0e3f\u0e4f\u2016\u2017\u201a\u201e-\u2025\u2030-\u2038]",
    r"[\u203b\u203e-\u2044\u2070-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012]",
    r"[\u02d2-\u02df\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]",
]
_SPLIT = [  # a match is as many tokens as it has groups
    rf"(?i:(can)(not)|(gon|wan)(na)|(got)(ta)|(gim|lem)(me))(?!{_W}|{_APOSTROPHE})",
    rf"(?i:('t)(is|was))(?!{_W})",
    rf"([A-Za-z]*[A-MO-Za-mo-z])((?i:n{_APOSTROPHE}t))",
    rf"(?i:(n{_APOSTROPHE}t))",
    rf"(?i:({_APOSTROPHE}(?:s|m|d|re|ve|ll|n)))(?!{_L})",
]
_RULES = [re.compile(rule) for rule in [*_SPLIT, *_WHOLE]]

_WRITTEN_AS = {
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u00a3": "#",
    "\u00a2": "cents",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "&lt;": "<",
    "&gt;": ">",
} | dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_ENTITIES = {"&nbsp;": " ", "&quot;": '"', "&apos;": "'", "&mdash;": "--"}
_ENTITY = re.compile("|".join(_ENTITIES))
_NEEDS_LINE = re.compile(r"[<(]|\.\s+[\dA-Z]")  # tags, telephone numbers, "no. 5": the next word counts, too
_ENDS_IN_INITIAL = re.compile(r"(?:^|\s)[A-Za-z]\.\s*$")
_DROPPED = re.compile(r"[?!]|-{2,}|\.{3}")  # the other signs that CIDEr ignores match no rule at all
_BEYOND_16_BITS = re.compile("[\U00010000-\U0010ffff]")


def tokenize(caption: str, following: str = "A") -> list[str]:
    """Return the lower-case tokens of a caption without its punctuation. Characters that are unknown are left out.

    `following` is the next caption of the file: after "plan B." its first word decides whether a sentence ends there,
    or the letter keeps its stop. Most captions start with "A", which ends it.
    """
    if _ENTITY.search(caption):
        caption = _ENTITY.sub(lambda match: _ENTITIES[match[0]], caption)
    if not caption.isascii():
        caption = _BEYOND_16_BITS.sub(" ", caption).replace("\u00ad", "")  # soft hyphen
    if _ENDS_IN_INITIAL.search(caption) and _SENTENCE.match(f"\n{following.strip()} "):
        caption = caption.rstrip()[:-1]
    if _NEEDS_LINE.search(caption):
        return list(_tokens_of(" ".join(caption.split())))
    return [token for word in caption.split() for token in _tokens_of(word)]


@lru_cache(maxsize=1 << 16)
def _tokens_of(text: str) -> tuple[str, ...]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        matches = [match for rule in _RULES if (match := rule.match(text, position))]
        if not matches:  # white space, a sign that is dropped, or no character of the tokenizer
            position += 1
            continue
        longest = max(matches, key=re.Match.end)  # the first one, if several are equally long
        position = longest.end()
        for part in longest.groups() or (longest[0],):
            if part is not None and not _DROPPED.fullmatch(part):
                tokens += _written(part, is_split=bool(longest.groups())).split()
    return tuple(tokens)


def _written(token: str, *, is_split: bool) -> str:
    if is_split:
        token = re.sub(_APOSTROPHE, "'", token)
    token = _WRITTEN_AS.get(token, token).lower()
    return token if token[0] == "<" else token.translate(_BRACKETS).replace("&amp;", "&")
