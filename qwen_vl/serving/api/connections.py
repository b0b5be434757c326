"""The HTTP connections of a server: uvicorn's, with a bound on their number and on the time to send a request."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_vl.serving.api.running import unavailable
from qwen_vl.serving.protocol.errors import ApiError


class Connection(H11Protocol):
    """One connection. uvicorn itself lets a client take forever to send a request's headers."""

    max_connections = 512
    header_seconds = 20.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin. One connection too many gets 503 and is closed."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(raw_response(unavailable("too many connections")))
            transport.close()
            return
        self._time_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a client."""
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close."""
        self.transport.write(raw_response(ApiError(400, "this is not a valid HTTP request", code="invalid_http")))
        self.transport.close()

    def _time_headers(self) -> None:
        """Close the connection later if it then still waits for a request's headers."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def raw_response(error: ApiError) -> bytes:
    """Return the bytes of an error's whole HTTP response, for a connection that no app answers."""
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 {error.status} Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
