"""The text of a stream of ids, given out only when nothing can take it back."""

import codecs
from collections.abc import Iterable, Sequence

from qwen_vl.model.tokenization_qwen import QWenTokenizer


class TextStream:
    """Ids in, safe text out; all pieces together are the text of the answer.

    What is returned holds no half of a UTF-8 character and no possible beginning of a stop word. The stop word that is
    complete first ends the text, and of several at once the longest. The pieces do not depend on how ids are grouped.
    With `strip`, white space around the answer is left out, as `model.chat` does; before a stop word it stays.
    """

    def __init__(self, tokenizer: QWenTokenizer, stop: Sequence[str] = (), *, strip: bool = True) -> None:
        self.tokenizer, self.stop, self.strip = tokenizer, tuple(stop), strip
        self.stopped = False  # a stop word came, and the text before it has been returned
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)
        self._ids: list[int] = []  # not decoded yet
        self._text = ""  # decoded, not returned yet
        self._has_begun = not strip

    def push(self, ids: Iterable[int]) -> str:
        """Return the new text that is safe after these ids. After a stop word it is always empty."""
        self._ids += ids
        return self._take(self._decoded(), is_end=False)

    def close(self) -> str:
        """Return the rest of the text. A character that was cut off becomes a replacement character."""
        return self._take(self._decoded(is_end=True), is_end=True)

    def _decoded(self, *, is_end: bool = False) -> str:
        """Return the text of the ids that are complete, and forget these ids."""
        last_start, last_end = (_last(self._ids, mark) for mark in self._image_marks)
        if last_start > last_end and not is_end:  # the ids of an image tag mean bytes only once it is closed
            return ""
        ids, self._ids = self._ids, []
        escaped = self.tokenizer.decode(ids, errors="surrogateescape")
        return self._decoder.decode(escaped.encode("utf-8", "surrogateescape"), is_end)

    @property
    def _image_marks(self) -> tuple[int, int]:
        return self.tokenizer.img_start_id, self.tokenizer.img_end_id

    def _take(self, new: str, *, is_end: bool) -> str:
        """Return what is safe of the text that waits and the new text."""
        if self.stopped:
            return ""
        self._text += new
        ends = [(start + len(word), start) for word in self.stop if (start := self._text.find(word)) >= 0]
        if ends:
            self.stopped = True
            return self._given(min(ends)[1])
        if not is_end:
            safe = len(self._text) - held_back(self._text, self.stop)
            return self._given(len(self._text[:safe].rstrip()) if self.strip else safe)
        return self._given(len(self._text.rstrip()) if self.strip else len(self._text))

    def _given(self, length: int) -> str:
        """Return the first characters of the text that waits, and keep the others."""
        given, self._text = self._text[:length], self._text[length:]
        if not self._has_begun:
            given = given.lstrip()
            self._has_begun = bool(given)
        return given


def held_back(text: str, words: Iterable[str]) -> int:
    """Return the length of the longest end of a text with which one of the words may begin."""
    longest = 0
    for word in words:
        sizes = range(min(len(word) - 1, len(text)), longest, -1)
        longest = next((size for size in sizes if text.endswith(word[:size])), longest)
    return longest


def _last(ids: Sequence[int], wanted: int) -> int:
    """Return the last position of an id, -1 without one."""
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] == wanted), -1)
