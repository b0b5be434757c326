"""The HTTP connections of a server: uvicorn's, with bounds on their number and on the time that a client may take."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_vl.serving.api.running import unavailable
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.protocol.errors import ApiError

LINGER_SECONDS = 2  # how long a refused client may take to read why
MAX_REFUSED = 64  # connections beyond the limit that are told so; more of them are just closed


class Timer:
    """A call that happens later, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], None], *, again: bool = False) -> None:
        """Call `call` after so many seconds. If the timer runs, it goes on, or with `again` begins anew."""
        if again:
            self.stop()
        if self._handle is None or self._handle.when() <= self._loop.time():
            self._handle = self._loop.call_later(seconds, call)

    def stop(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(H11Protocol):
    """One connection. uvicorn itself lets clients take forever to send a request's headers and to read an answer."""

    max_connections = 512
    header_seconds = 20.0
    stall_seconds = 60.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_refused = False
        self._end, self._stall = Timer(self.loop), Timer(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin. A connection beyond the limit gets 503 and is closed."""
        super().connection_made(transport)
        excess = len(self.connections) - self.max_connections
        if excess > MAX_REFUSED:
            transport.abort()
        elif excess > 0:
            self._refuse(unavailable("too many connections"))
        else:
            self._time_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a client. Those of a refused one are dropped."""
        if self._is_refused:
            return
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._end.stop()
        self._stall.stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP. Where an answer has begun, nothing can be added, so the connection is closed."""
        if self._is_answering() and self.cycle.response_started:
            self.transport.abort()
            return
        if self._is_answering():  # the app gets no more of the body, and nothing that it sends goes out
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        message = "this is not a valid HTTP request, or its headers are too large"
        self._refuse(ApiError(400, message, code="invalid_http"))

    def on_response_complete(self) -> None:
        """Prepare for the next request, or end."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_within(self.stall_seconds)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without a next request."""
        super().timeout_keep_alive_handler()
        self._end_within(self.stall_seconds)

    def shutdown(self) -> None:
        """Close the connection, after the running response if there is one."""
        super().shutdown()
        if self.transport.is_closing():
            self._end_within(self.stall_seconds)

    def pause_writing(self) -> None:
        """Let the app wait, for a bounded time, until the client has read some of what was sent."""
        super().pause_writing()
        self._stall.start(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Let the app go on."""
        self._stall.stop()
        super().resume_writing()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _time_headers(self) -> None:
        """Close the connection later if it then still waits for a request's headers."""
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_answering():
            self._end.stop()
        else:
            self._end.start(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        if not self._is_answering():
            self.transport.close()
            self._end_within(self.stall_seconds)

    def _refuse(self, error: ApiError) -> None:
        """Write an error as the last thing, and close when the client has had the time to read it.

        A connection that is closed while its client still writes is reset, and the client never sees the error.
        """
        self._is_refused = True
        self.transport.write(raw_response(error))
        self.transport.write_eof()
        self._end_within(LINGER_SECONDS)

    def _end_within(self, seconds: float) -> None:
        """End the connection even if the client never reads the rest."""
        self._end.start(seconds, self.transport.abort, again=True)


def bounded_by(settings: ServerSettings) -> type[Connection]:
    """Return the class of connections with the bounds of a server."""

    class Bounded(Connection):
        max_connections = settings.max_connections
        header_seconds = settings.header_seconds
        stall_seconds = settings.stall_seconds

    return Bounded


def raw_response(error: ApiError) -> bytes:
    """Return the bytes of an error's whole HTTP response, for a connection that no app answers."""
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 {error.status} Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
