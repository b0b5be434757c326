"""The messages of a request: text, addresses of images, calls of functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from qwen_vl.serving.protocol import checks
from qwen_vl.serving.protocol.errors import invalid
from qwen_vl.serving.react import Call

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "function",
    "function": "function",
}
MESSAGES = "messages"


@dataclass(frozen=True)
class Limits:
    """The most that one request may hold. Sizes of texts are in characters; `max_text` is of all texts together."""

    max_messages: int = 1000
    max_parts: int = 1000  # of all messages together
    max_images: int = 16
    max_n: int = 8
    max_stop: int = 4
    max_stop_length: int = 256
    max_text: int = 200_000
    max_tools: int = 64


class ImageAddress(NamedTuple):
    """An image of a request: its address or data: URI, and the part that names it, `messages[0].content[1]`."""

    source: str
    where: str


@dataclass(frozen=True)
class RequestMessage:
    """A checked message. Parts are texts and addresses of images, the latter in user messages alone."""

    role: Literal["system", "user", "assistant", "function"]
    parts: tuple[str | ImageAddress, ...]
    call: Call | None = None


def parse_messages(value: Any, limits: Limits) -> tuple[RequestMessage, ...]:
    """Return the messages of a request. Raise ApiError, naming the part, for a wrong type and for too many of them."""
    values = checks.items(value, MESSAGES)
    if not values:
        raise invalid(MESSAGES, "is empty; send at least one message")
    checks.at_most(len(values), limits.max_messages, MESSAGES, "messages")
    messages: list[RequestMessage] = []
    num_parts = num_images = num_characters = 0
    for index, item in enumerate(values):
        message = _message(item, f"{MESSAGES}[{index}]", limits)
        messages.append(message)
        num_parts += len(message.parts)
        num_images += sum(isinstance(part, ImageAddress) for part in message.parts)
        num_characters += sum(len(part) for part in message.parts if isinstance(part, str))
        num_characters += sum(map(len, message.call or ()))
        checks.at_most(num_parts, limits.max_parts, MESSAGES, "parts")
        checks.at_most(num_images, limits.max_images, MESSAGES, "images")
        checks.at_most(num_characters, limits.max_text, MESSAGES, "characters of text")
    return tuple(messages)


def _message(value: Any, where: str, limits: Limits) -> RequestMessage:
    message = checks.objects(value, where)
    name = checks.text(message.get("role"), f"{where}.role")
    if name not in ROLES:
        raise invalid(f"{where}.role", f"is {checks.shown(name)}; use one of {', '.join(ROLES)}")
    role: Any = ROLES[name]
    call = _call(message, where) if role == "assistant" else None
    content = message.get("content")
    if content is None and call is not None:
        return RequestMessage(role, (), call)
    return RequestMessage(role, tuple(_parts(content, f"{where}.content", role, limits)), call)


def _parts(content: Any, where: str, role: str, limits: Limits) -> Iterator[str | ImageAddress]:
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise invalid(where, f"is {checks.shown(content)}; use a string or a list of parts")
    checks.at_most(len(content), limits.max_parts, where, "parts")
    for index, item in enumerate(content):
        part_where = f"{where}[{index}]"
        part = checks.objects(item, part_where)
        kind = checks.text(part.get("type"), f"{part_where}.type")
        if kind == "text":
            yield checks.text(part.get("text"), f"{part_where}.text")
        elif kind == "image_url":
            if role != "user":
                raise invalid(part_where, "is an image; only user messages may hold images")
            yield ImageAddress(_address(part.get("image_url"), f"{part_where}.image_url"), part_where)
        else:
            raise invalid(f"{part_where}.type", f"is {checks.shown(kind)}; use text or image_url")


def _address(value: Any, where: str) -> str:
    """Return the address in an image part. Some clients write it without the object around it."""
    if not isinstance(value, str):
        value, where = checks.objects(value, where).get("url"), f"{where}.url"
    address = checks.text(value, where)
    if not address:
        raise invalid(where, "is empty; use a data: URI or an http(s) address")
    return address


def _call(message: dict[str, Any], where: str) -> Call | None:
    """Return the call in an assistant's message, None without one."""
    calls, old = message.get("tool_calls"), message.get("function_call")
    if calls and old:
        raise invalid(f"{where}.function_call", "comes together with tool_calls; send one of them")
    path = f"{where}.function_call"
    if calls:
        checks.items(calls, f"{where}.tool_calls")
        if len(calls) > 1:
            raise invalid(f"{where}.tool_calls", f"has {len(calls)} calls; the model makes one call at a time")
        path = f"{where}.tool_calls[0].function"
        old = checks.objects(calls[0], f"{where}.tool_calls[0]").get("function")
        if old is None:
            raise invalid(path, "is missing; give the name and the arguments of the function")
    if old is None:
        return None
    function = checks.objects(old, path)
    name = checks.text(function.get("name"), f"{path}.name")
    arguments = function.get("arguments")
    return Call(name, "" if arguments is None else checks.text(arguments, f"{path}.arguments"))
