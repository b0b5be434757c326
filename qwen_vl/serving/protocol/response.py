"""Responses of the OpenAI protocol as dictionaries for JSON: completions, chunks of a stream, models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vl.serving.protocol.choices import Choice, Delta
from qwen_vl.serving.protocol.tools import CallsAs


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return the numbers of tokens of a request; an image counts its span, and `n` answers count together."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def model_card(
    name: str, *, created: int, root: str, parent: str | None, max_model_len: int, owned_by: str = "qwen-vl"
) -> dict[str, Any]:
    """Return a model as /v1/models lists it; parent: the base of an adapter."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owned_by,
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
    }


def models(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the list of /v1/models."""
    return {"object": "list", "data": [*cards]}


def completion(
    completion_id: str,
    *,
    created: int,
    model: str,
    choices: Sequence[Choice],
    calls_as: CallsAs,
    usage: dict[str, Any],
) -> dict[str, Any]:
    """Return a whole chat completion."""
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": index,
                "message": message(choice, calls_as),
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage,
    }


def message(choice: Choice, calls_as: CallsAs) -> dict[str, Any]:
    """Return the message of a choice, with its call and its boxes."""
    content = choice.content or None if choice.call else choice.content
    found: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    found |= _call(choice, calls_as)
    return found | ({"grounding": choice.grounding} if choice.grounding else {})


def _call(choice: Choice, calls_as: CallsAs, **position: int) -> dict[str, Any]:
    """Return the field of the call in a message or, with `index`, in a delta; nothing without a call."""
    if choice.call is None:
        return {}
    function = choice.call._asdict()
    if calls_as == "function_call":
        return {"function_call": function}
    return {"tool_calls": [{**position, "id": choice.call_id, "type": "function", "function": function}]}


def _logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}


@dataclass(frozen=True)
class Chunks:
    """The chunks of one stream, each as a dictionary: `start`, any number of `text`, `end`, and at last `usage`."""

    completion_id: str
    created: int
    model: str
    calls_as: CallsAs
    include_usage: bool

    def start(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a choice: the role, and an empty content."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def text(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """Return the chunk of new text, None if there is nothing new."""
        if not delta.content and not delta.logprobs:
            return None
        return self._chunk(index, {"content": delta.content}, logprobs=_logprobs(delta.logprobs or None))

    def end(self, index: int, choice: Choice) -> list[dict[str, Any]]:
        """Return the last chunks of a choice: the rest of its text, its call, then its boxes with the finish reason."""
        deltas: list[dict[str, Any]] = [{"content": choice.rest}] if choice.rest else []
        if choice.call:
            deltas.append(_call(choice, self.calls_as, index=0))
        boxes = {"grounding": choice.grounding} if choice.grounding else {}
        return [self._chunk(index, delta) for delta in deltas] + [
            self._chunk(index, boxes, finish_reason=choice.finish_reason)
        ]

    def usage(self, counted: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk after all choices, which `include_usage` asks for."""
        return {**self._head(), "choices": [], "usage": counted}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice], **({"usage": None} if self.include_usage else {})}
