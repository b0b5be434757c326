"""Server-sent events: how an answer is streamed."""

import contextlib
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Send

from qwen_vl.serving.protocol.errors import ApiError

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # or nginx collects the events
}
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # a comment, which clients skip
QUIET_SECONDS = 8.0  # proxies close connections on which nothing happens


class EventSender:
    """Sends the events of one response; the first one starts it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._last = time.monotonic()

    async def send_all(self, events: AsyncGenerator[dict[str, Any] | None, None]) -> None:
        """Send each event as it comes, then [DONE]. None stands for nothing new: a comment, if the last one is old."""
        async with contextlib.aclosing(events) as source:
            async for event in source:
                if event is not None:
                    await self._write(encode(event))
                elif time.monotonic() - self._last > QUIET_SECONDS:
                    await self._write(PING)
        await self._write(DONE, more=False)

    async def fail(self, error: ApiError) -> None:
        """End a started response with an error. Without it, clients would take a cut answer for a whole one."""
        await self._write(encode(error.body()), more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if not self.started:
            headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._last = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def encode(event: dict[str, Any]) -> bytes:
    """Return the bytes of one event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "backslashreplace")
