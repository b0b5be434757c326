"""Texts of models and data files for a page, a document or a table: whatever they hold, they stay text."""

import html
import re
import unicodedata

from qwen_vl.data.preview.html_page import visible

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet program computes a cell that begins so
MARKUP = re.compile(r"([\\`*_\[\]~#!])")  # of Markdown; `|` is escaped by `markdown_table`
JOINERS = "\u200c\u200d"  # format characters that words of some languages, and emoji, are written with


def shown(text: str) -> str:
    """Return a text in which nothing is hidden: control, direction and other format characters become visible."""
    return "".join(_symbol(c) for c in visible(text))


def _symbol(character: str) -> str:
    """Return the character, or <U+202E> and the like for one that is not seen or moves its neighbors."""
    is_hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in JOINERS + "\n"
    return f"<U+{ord(character):04X}>" if is_hidden else character


def shortened(text: str, length: int) -> str:
    """Return a text cut to `length` characters, and how many were left out."""
    more = len(text) - length
    return text if more <= 0 else f"{text[:length]}.. ({more:,} more characters)"


def for_html(text: object, length: int | None = None) -> str:
    """Return a text for HTML, also inside an attribute, cut to `length` characters."""
    content = str(text)
    return html.escape(shown(content if length is None else shortened(content, length)))


def for_markdown(text: object, length: int | None = None) -> str:
    """Return a text for Markdown, on one line, cut to `length` characters; it is no markup and no HTML."""
    content = str(text)
    content = shown(content if length is None else shortened(content, length)).replace("\n", "\u23ce")
    return MARKUP.sub(r"\\\1", content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def for_csv(text: object) -> str:
    """Return a text for a cell that no spreadsheet program takes for a formula."""
    content = shown(str(text))
    return f"'{content}" if content.startswith(FORMULA) else content
