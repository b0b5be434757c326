"""The body of a request: bounded in bytes and seconds, and JSON."""

from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request

from qwen_vl.serving.protocol.errors import ApiError
from qwen_vl.serving.protocol.request import decode

DISCARD_SECONDS = 5  # how long the rest of a refused body is read, so that its sender can see the answer


async def read_json(request: Request, *, max_bytes: int, seconds: float) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    Raise ApiError if it is not sent as JSON, or compressed (415), is larger than max_bytes (413), takes longer than
    `seconds` (408) or is not valid (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):  # a form of another web page can send other types
        raise ApiError(415, "send the header Content-Type: application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        message = "the body is compressed; send it without Content-Encoding"
        raise ApiError(415, message, code="unsupported_media_type")
    try:
        with anyio.fail_after(seconds):
            body, more = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {seconds:g} seconds", code="request_timeout") from None
    if body is None:
        await _discard(request, more)
        raise ApiError(413, f"the body has more than {max_bytes} bytes, the limit here", code="request_too_large")
    return await anyio.to_thread.run_sync(decode, body)  # in a thread: large bodies take a while


async def _read(request: Request, max_bytes: int) -> tuple[bytes | None, bool]:
    """Return the bytes of a body, None as soon as there are more than max_bytes or will be, and whether more follow."""
    length = request.headers.get("content-length", "")
    too_large = length.isdecimal() and int(length) > max_bytes
    size, chunks, more = 0, [], True
    while more and not too_large:
        chunk, more = await _next(request)
        size += len(chunk)
        too_large = size > max_bytes
        chunks.append(chunk)
    return None if too_large else b"".join(chunks), more


async def _discard(request: Request, more: bool) -> None:
    """Read and drop what is left of a body, for a few seconds at most.

    A connection that is closed while its sender still writes is reset, and the sender never sees the answer.
    """
    with anyio.move_on_after(DISCARD_SECONDS):
        while more:
            _, more = await _next(request)


async def _next(request: Request) -> tuple[bytes, bool]:
    """Return the next bytes of a body, and whether more follow. Raise ClientDisconnect if the client has gone."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
