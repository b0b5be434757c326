"""Server-sent events: how an answer is streamed."""

import contextlib
import json
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


class EventSender:
    """Sends the events of one response; the first one starts it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send_all(self, events: AsyncGenerator[dict[str, Any], None]) -> None:
        """Send each event as it comes, then [DONE]."""
        async with contextlib.aclosing(events) as source:
            async for event in source:
                await self._write(encode(event))
        await self._write(DONE, more=False)

    async def fail(self, error: ApiError) -> None:
        """End a started response with an error. Without it, clients would take a cut answer for a whole one."""
        await self._write(encode(error.body()), more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if not self.started:
            headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def encode(event: dict[str, Any]) -> bytes:
    """Return the bytes of one event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "backslashreplace")
