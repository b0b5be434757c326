"""A request for a chat completion: decoded JSON in, a checked value out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from qwen_vl.serving import react
from qwen_vl.serving.conversation import Message, Role, SentImage
from qwen_vl.serving.protocol import checks
from qwen_vl.serving.protocol.checks import decode
from qwen_vl.serving.protocol.errors import ApiError, invalid, unsupported
from qwen_vl.serving.protocol.messages import MESSAGES, ImageAddress, Limits, RequestMessage, parse_messages
from qwen_vl.serving.protocol.tools import CallsAs, parse_tools

__all__ = ["ChatRequest", "Conversation", "ImageAddress", "Limits", "RequestMessage", "decode", "parse"]

MAX_TOKENS = 2**31 - 1
# Fields that would change the answer and are not obeyed, with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **{"seed": (), "logit_bias": ({},), "top_logprobs": (0,), "response_format": ({"type": "text"},)},
    **{"frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,)},
    **{"min_p": (0,), "typical_p": (1,), "modalities": (["text"],), "audio": (), "web_search_options": ()},
    **{"min_tokens": (0,), "ignore_eos": (False,), "stop_token_ids": ([],), "bad_words": ([],), "echo": (False,)},
    **{"use_beam_search": (False,), "best_of": (1,), "prompt_logprobs": (), "structured_outputs": ()},
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "chat_template"), ()),
}


class Conversation(NamedTuple):
    """The messages for `prompts.encode`, and whether the answer continues the last one."""

    messages: list[Message]
    continues: bool


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. None stands for the model's own default; a `top_k` of 0 is off, a `temperature` of 0 greedy.

    functions: those that the model may call. calls_as: the field in which the client expects a call.
    as_original: whether the original's rules hold: all messages go through `react`, and the end of an answer decides
    whether it is a call.
    """

    as_original: ClassVar[bool] = False

    model: str
    messages: tuple[RequestMessage, ...]
    functions: tuple[dict[str, Any], ...] = ()
    calls_as: CallsAs = "tool_calls"
    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    grounding: bool = True

    @property
    def addresses(self) -> list[ImageAddress]:
        """Return the images of all messages, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, ImageAddress)]

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Return what ends an answer; with functions also "Observation:"."""
        if not self.functions:
            return self.stop
        return tuple(react.stop_words(self.stop, has_functions=True))

    def conversation(self, images: Sequence[SentImage]) -> Conversation:
        """Return the Conversation with `images`, those of `addresses`, in their places.

        A last assistant message is continued. Functions, their calls and results become text (`react`). Raise ApiError
        if the roles make no conversation.
        """
        waiting = iter(images)
        contents = [
            tuple(part if isinstance(part, str) else next(waiting) for part in message.parts)
            for message in self.messages
        ]
        if (
            self.as_original
            or self.functions
            or any(message.call or message.role == "function" for message in self.messages)
        ):
            turns = [
                react.Turn(message.role, parts, message.call)
                for message, parts in zip(self.messages, contents, strict=True)
            ]
            return self._with_functions(turns)
        if not any(message.role == "user" for message in self.messages):
            raise invalid(MESSAGES, "has no user message; send at least one")
        roles: list[Role] = [message.role for message in self.messages if message.role != "function"]
        messages = [Message(role, parts) for role, parts in zip(roles, contents, strict=True)]
        return Conversation(messages, messages[-1].role == "assistant")

    def _with_functions(self, turns: Sequence[react.Turn]) -> Conversation:
        try:
            query, history = react.to_query(turns, self.functions)
        except react.ReactError as error:
            raise ApiError(400, str(error), param=MESSAGES) from None
        messages = []
        for asked, answered in history:
            messages += [Message("user", asked), Message("assistant", (answered,))]
        if query is None:
            return Conversation(messages, True)
        return Conversation([*messages, Message("user", query)], False)


def parse(body: dict[str, Any], limits: Limits) -> ChatRequest:
    """Return the ChatRequest of a decoded body.

    Raise ApiError (400), naming the parameter, for wrong types and values, for what exceeds the limits, and for fields
    that would change the answer but are not obeyed. Other unknown fields are ignored.
    """
    _refuse_unsupported(body)
    if body.get("model") is None:
        raise invalid("model", "is missing; give one of GET /v1/models")
    model = checks.text(body.get("model"), "model")
    tools = parse_tools(body, limits)
    stream = checks.flag(body.get("stream"), "stream", False)
    n = checks.whole_number(body.get("n"), "n", 1, limits.max_n)
    top_k = checks.whole_number(body.get("top_k"), "top_k", -1, MAX_TOKENS)
    return ChatRequest(
        model=model,
        messages=parse_messages(body.get(MESSAGES), limits),
        functions=tools.functions,
        calls_as=tools.calls_as,
        n=1 if n is None else n,
        max_tokens=_max_tokens(body),
        temperature=checks.number(body.get("temperature"), "temperature", 0, 2),
        top_p=checks.number(body.get("top_p"), "top_p", 0, 1, above=True),
        top_k=top_k if top_k is None else max(top_k, 0),
        stop=parse_stop(body.get("stop"), limits),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        logprobs=checks.flag(body.get("logprobs"), "logprobs", False),
        grounding=checks.flag(body.get("grounding"), "grounding", True),
    )


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for name, harmless in UNSUPPORTED.items():
        value = body.get(name)
        if value is None:
            continue
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
            raise unsupported(name, "leave it out")


def _max_tokens(body: dict[str, Any]) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    found = {name: checks.whole_number(body.get(name), name, 1, MAX_TOKENS) for name in names}
    values = {value for value in found.values() if value is not None}
    if len(values) > 1:
        raise invalid("max_tokens", "differs from max_completion_tokens; send one of them")
    return next(iter(values), None)


def parse_stop(value: Any, limits: Limits) -> tuple[str, ...]:
    """Return the stop words of a request: a string, or a list of them."""
    words = [] if value is None else [value] if isinstance(value, str) else checks.items(value, "stop")
    checks.at_most(len(words), limits.max_stop, "stop", "stop words")
    for index, word in enumerate(words):
        where = "stop" if isinstance(value, str) else f"stop[{index}]"
        if not checks.text(word, where):
            raise invalid(where, "is empty; use at least one character")
        checks.at_most(len(word), limits.max_stop_length, where, "characters")
    return tuple(words)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    options = checks.objects(value, "stream_options")
    if not stream:
        raise invalid("stream_options", "is only for streams; set stream to true")
    return checks.flag(options.get("include_usage"), "stream_options.include_usage", False)
