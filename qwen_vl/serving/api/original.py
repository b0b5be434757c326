"""Chat requests with the rules of the original's `openai_api.py`. Its texts are those of `react`."""

import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qwen_vl.serving import react
from qwen_vl.serving.api.answers import Answers
from qwen_vl.serving.api.chat import ChatRoute, find_model
from qwen_vl.serving.api.reply import Reply
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.engine import ModelEntry
from qwen_vl.serving.prompts import encode
from qwen_vl.serving.protocol import checks
from qwen_vl.serving.protocol.errors import ApiError, invalid, unsupported
from qwen_vl.serving.protocol.request import (
    ChatRequest,
    ImageAddress,
    Limits,
    RequestMessage,
    parse_stop,
)

IMAGE = re.compile("<img>(.*?)</img>", re.DOTALL)
ROLES = ("user", "assistant", "system", "function")
TEXTS_OF_FUNCTIONS = ("name", "name_for_model", "name_for_human", "description", "description_for_model")
WRONG_TYPE = 422


@dataclass(frozen=True)
class OriginalRequest(ChatRequest):
    """A checked request: there is no system turn but the default one."""

    as_original: ClassVar[bool] = True

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Return what ends an answer: each stop word also without its leading newlines."""
        return tuple(react.stop_words(self.stop, has_functions=bool(self.functions)))


class OriginalReply(Reply):
    """A reply as the original gives it: with the requested name, and no other reason to finish than "stop"."""

    asked = ""  # the model's name in the request

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the completion."""
        completion = await super().whole(answers)
        for choice in completion["choices"]:
            _finish(choice)
            message = choice["message"]
            choice["message"] = {**message, "content": message["content"] or "", "function_call": None} | {
                key: value for key, value in message.items() if key == "function_call"
            }
        return {**completion, "model": self.asked}

    async def chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Iterate over the chunks of a stream. None stands for something that gave no new text."""
        async with contextlib.aclosing(super().chunks(answers)) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"] if chunk else ():
                    _finish(choice)
                yield chunk and {**chunk, "model": self.asked}


def _finish(choice: dict[str, Any]) -> None:
    if choice["finish_reason"] == "length":
        choice["finish_reason"] = "stop"


class OriginalRoute(ChatRoute):
    """POST /v1/chat/completions as the original answers it, with its mistakes mended."""

    def _parse(self, body: dict[str, Any]) -> ChatRequest:
        return parse(body, self.limits)

    def _entry(self, request: ChatRequest) -> ModelEntry:
        """Return the model of a request. Any name is the base's, unless adapters make names meaningful."""
        entries = self.engine.model_names
        return entries[0] if len(entries) == 1 else find_model(entries, request.model)

    def _prepare(self, request: ChatRequest, images: Sequence[SentImage], entry: ModelEntry) -> Reply:
        """Return the reply to a request with its prompt, in which texts themselves number the images."""
        messages, continues = request.conversation(images)
        prompt = encode(self.engine.tokenizer, messages, continues=continues, labeled=False)
        short = replace(request, messages=(), model=entry.id)
        reply = OriginalReply(short, prompt, self.engine.tokenizer, self.metrics, continues=continues)
        reply.asked = request.model
        return reply


def parse(body: dict[str, Any], limits: Limits) -> OriginalRequest:
    """Return the OriginalRequest of a decoded body; fields that the original does not know are ignored.

    Raise ApiError: 422 for wrong types, 400 for what exceeds the limits.
    """
    if body.get("tools"):
        raise unsupported("tools", "send functions instead, or use `qwen-vl serve`")
    try:
        temperature = checks.number(body.get("temperature"), "temperature", 0, 2)
        top_p = checks.number(body.get("top_p"), "top_p", 0, 1)
        return OriginalRequest(
            model=checks.text(body.get("model"), "model"),
            messages=_messages(body.get("messages"), limits),
            functions=_functions(body.get("functions"), limits),
            calls_as="function_call",
            temperature=0.0 if top_p == 0 else temperature,
            top_p=top_p or None,
            stop=parse_stop(body.get("stop"), limits),
            stream=checks.flag(body.get("stream"), "stream", False),
            grounding=checks.flag(body.get("grounding"), "grounding", True),
        )
    except ApiError as error:
        error.status = error.status if error.code else WRONG_TYPE
        raise


def _messages(value: Any, limits: Limits) -> tuple[RequestMessage, ...]:
    values = checks.items(value, "messages")
    checks.at_most(len(values), limits.max_messages, "messages", "messages")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(values))
    parts = [part for message in messages for part in message.parts]
    texts = [part for part in parts if isinstance(part, str)]
    checks.at_most(len(parts), limits.max_parts, "messages", "texts and images")
    checks.at_most(len(parts) - len(texts), limits.max_images, "messages", "images")
    texts += [text for message in messages for text in message.call or ()]
    checks.at_most(sum(map(len, texts)), limits.max_text, "messages", "characters of text")
    return messages


def _message(value: Any, where: str) -> RequestMessage:
    message = checks.objects(value, where)
    role: Any = checks.text(message.get("role"), f"{where}.role")
    if role not in ROLES:
        raise invalid(f"{where}.role", f"is {checks.shown(role)}; use one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        raise invalid(f"{where}.content", "is a list; use a string with <img>ADDRESS</img>, or `qwen-vl serve`")
    text = "" if content is None else checks.text(content, f"{where}.content")
    parts = _parts(text, f"{where}.content") if role == "user" else (text,)
    return RequestMessage(role, parts, _call(message.get("function_call"), f"{where}.function_call"))


def _parts(text: str, where: str) -> tuple[str | ImageAddress, ...]:
    """Return a text split at its <img>ADDRESS</img>."""
    pieces = IMAGE.split(text)  # texts and addresses in turn
    return tuple(ImageAddress(piece, where) if index % 2 else piece for index, piece in enumerate(pieces))


def _call(value: Any, where: str) -> react.Call | None:
    if value is None:
        return None
    call = checks.objects(value, where)
    arguments = call.get("arguments")
    return react.Call(
        checks.text(call.get("name"), f"{where}.name"),
        "" if arguments is None else checks.text(arguments, f"{where}.arguments"),
    )


def _functions(value: Any, limits: Limits) -> tuple[dict[str, Any], ...]:
    functions = [] if value is None else checks.items(value, "functions")
    checks.at_most(len(functions), limits.max_tools, "functions", "functions")
    for index, item in enumerate(functions):
        function = checks.objects(item, f"functions[{index}]")
        for key in TEXTS_OF_FUNCTIONS:
            if function.get(key) is not None:
                checks.text(function[key], f"functions[{index}].{key}")
    checks.at_most(len(react.instruction(functions)), limits.max_text, "functions", "characters")
    return tuple({key: item for key, item in function.items() if item is not None} for function in functions)
