"""The log of a server: a line for each request, without what it says unless the operator asks for that."""

import logging
import time
import uuid
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
QUIET_PATHS = frozenset({"/health", "/metrics"})  # asked every few seconds; logged only if they fail
MAX_LOGGED_BYTES = 20_000  # of a body, with --log_requests
MAX_LOGGED_WORD = 200


def note(scope: MutableMapping[str, Any], **facts: object) -> None:
    """Add facts to the log line of a request. They must be numbers and names, never texts of the client."""
    facts_of(scope).update(facts)


def facts_of(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the log line of a request will hold."""
    facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("log", {})
    return facts


class AccessLog:
    """Middleware that logs each request when it is over: id, client, sizes, seconds, status, and the route's facts.

    The id goes to the client too, as `x-request-id`. bodies: whether the beginnings of requests and answers are logged.
    """

    def __init__(self, app: ASGIApp, *, bodies: bool = False) -> None:
        self.app, self.bodies = app, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = _Entry(scope, receive, send, self.bodies)
        try:
            await self.app(scope, entry.receive, entry.send)
        finally:
            entry.log()


class _Entry:
    """What is known of one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: bool) -> None:
        self.scope, self._receive, self._send, self.bodies = scope, receive, send, bodies
        self.id = f"req-{uuid.uuid4().hex[:16]}"
        self.began, self.first = time.perf_counter(), 0.0
        self.status, self.num_in, self.num_out, self.is_whole = 0, 0, 0, False
        self.sent, self.got = bytearray(), bytearray()
        facts_of(scope)

    async def receive(self) -> Message:
        """Pass on a message of the client."""
        message = await self._receive()
        body = message.get("body", b"")
        self.num_in += len(body)
        self._keep(self.got, body)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message of the app."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.first = self.first or time.perf_counter()
            self.num_out += len(body)
            self.is_whole = not message.get("more_body", False)
            self._keep(self.sent, body)
        await self._send(message)

    def _keep(self, kept: bytearray, body: bytes) -> None:
        if self.bodies:
            kept += body[: MAX_LOGGED_BYTES - len(kept)]

    def log(self) -> None:
        """Write the line of the request."""
        path = self.scope["path"]
        level = logging.DEBUG if path in QUIET_PATHS and self.status == HTTPStatus.OK else logging.INFO
        client = (self.scope.get("client") or ["-"])[0]
        facts: dict[str, Any] = {"id": self.id, "client": client, "bytes_in": self.num_in, "bytes_out": self.num_out}
        facts["seconds"] = f"{time.perf_counter() - self.began:.3f}"
        if self.first:
            facts["first_seconds"] = f"{self.first - self.began:.3f}"
        facts |= facts_of(self.scope)
        if not self.is_whole:
            facts["cut"] = "yes"  # the client has gone, or there was no answer
        words = " ".join(f"{name}={shown(value)}" for name, value in facts.items())
        logger.log(level, "%s %s %s %s", self.scope["method"], shown(path), self.status or "-", words)
        for name, body in (("request", self.got), ("answer", self.sent)):
            if body:
                logger.log(level, "%s %s %s", self.id, name, printable(body.decode("utf-8", "backslashreplace")))


def shown(value: object) -> str:
    """Return a value as one short word of a log line, so that no client can write a line of its own."""
    return "".join("?" if letter.isspace() else letter for letter in printable(str(value))[:MAX_LOGGED_WORD])


def printable(text: str) -> str:
    """Return a text in one line, without characters that would control a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
