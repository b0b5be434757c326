"""The body of a request: bounded in bytes and seconds, and JSON."""

import json
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from qwen_vl.serving.protocol.errors import ApiError

DISCARD_SECONDS = 5  # how long the rest of a refused body is read, so that its sender can see the answer


async def read_json(request: Request, *, max_bytes: int, seconds: float) -> Any:
    """Return the JSON value of a request's body.

    Raise ApiError if it is not sent as JSON (415), is larger than max_bytes (413), takes longer than `seconds` (408)
    or is not valid (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):  # a form of another web page can send other types
        raise ApiError(415, "send the header Content-Type: application/json", code="unsupported_media_type")
    try:
        with anyio.fail_after(seconds):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {seconds:g} seconds", code="request_timeout") from None
    try:
        return await anyio.to_thread.run_sync(_parse, body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {_reason(error)}", code="invalid_json") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    """Return the bytes of a body. Raise ApiError 413 as soon as there are more than max_bytes, or will be."""
    length = request.headers.get("content-length", "")
    size, chunks = 0, []
    too_large = length.isdecimal() and int(length) > max_bytes
    if not too_large:
        async for chunk in request.stream():
            size += len(chunk)
            too_large = size > max_bytes
            if too_large:
                break
            chunks.append(chunk)
    if too_large:
        await _discard(request)
        raise ApiError(413, f"the body has more than {max_bytes} bytes, the limit here", code="request_too_large")
    return b"".join(chunks)


async def _discard(request: Request) -> None:
    """Read and drop what is left of a body, for a few seconds at most.

    A connection that is closed while its sender still writes is reset, and the sender never sees the answer.
    """
    with anyio.move_on_after(DISCARD_SECONDS):
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)


def _parse(body: bytes) -> Any:
    return json.loads(body.decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _reason(error: Exception) -> str:
    """Return what is wrong with a text as JSON, without the text."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
