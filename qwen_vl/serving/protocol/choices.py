"""One answer on its way to a client: from ids to text, calls, boxes and log probabilities."""

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.grounding import grounding
from qwen_vl.serving.protocol.request import ChatRequest
from qwen_vl.serving.protocol.tools import ToolText
from qwen_vl.serving.react import Call
from qwen_vl.serving.stopping import TextStream


class Delta(NamedTuple):
    """What is new in an answer; `logprobs` are of the ids that came, also of those whose text is still held back."""

    content: str
    logprobs: list[dict[str, Any]]


class Choice(NamedTuple):
    """A whole answer. `rest` is what no Delta has held yet; `call_id` is made up."""

    content: str
    rest: str
    finish_reason: str
    call: Call | None
    call_id: str
    grounding: dict[str, Any] | None
    logprobs: list[dict[str, Any]] | None


class ChoiceStream:
    """An answer in parts: `push` the ids of each event, `close` at the end. Both JSON and streams are made by it.

    images: those of the prompt, the latest of which the boxes belong to. continues: whether the answer continues a
    message; then white space at its ends belongs to it.
    """

    def __init__(
        self,
        request: ChatRequest,
        tokenizer: QWenTokenizer,
        *,
        images: Sequence[SentImage] = (),
        continues: bool = False,
    ) -> None:
        self._request, self._tokenizer, self._images = request, tokenizer, images
        self._stream = TextStream(tokenizer, request.stop_words, strip=not continues)
        self._tools = ToolText(waits=request.as_original) if request.functions else None
        self._content = ""
        self._logprobs: list[dict[str, Any]] = []

    @property
    def stopped(self) -> bool:
        """Return whether a stop word came: nothing more belongs to the answer, so cancel its request."""
        return self._stream.stopped

    def push(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> Delta:
        """Return what the client may have now."""
        entries = []
        if self._request.logprobs and logprobs is not None:
            entries = [self._entry(*pair) for pair in zip(ids, logprobs, strict=True)]
            self._logprobs += entries
        return Delta(self._grow(self._stream.push(ids)), entries)

    def close(self, finish: str) -> Choice:
        """Return the whole answer. finish: why the engine ended it, "stop" or "length"."""
        rest, call = self._grow(self._stream.close()), None
        if self._tools:
            last, call = self._tools.close()
            self._content += last
            rest += last
        reason = self._request.calls_as if call else "stop" if self.stopped else finish
        found = None
        if self._request.grounding and self._images:
            found = grounding(self._content, self._images[-1].size, image_number=len(self._images))
        logprobs = self._logprobs if self._request.logprobs else None
        return Choice(self._content, rest, reason, call, f"call_{uuid.uuid4().hex[:24]}", found, logprobs)

    def _grow(self, text: str) -> str:
        new = self._tools.push(text) if self._tools else text
        self._content += new
        return new

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Return a token with its log probability as clients read it; its bytes may be half a character."""
        raw = self._tokenizer.decode([token], errors="surrogateescape").encode("utf-8", "surrogateescape")
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": [*raw],
            "top_logprobs": [],
        }
