"""A running server: uvicorn with our connections, a graceful end, and an eye on the engine."""

import logging
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from qwen_vl.serving.api.access_log import AccessLog
from qwen_vl.serving.api.connections import bounded_by
from qwen_vl.serving.api.metrics import Engine
from qwen_vl.serving.api.running import Running, unavailable
from qwen_vl.serving.api.settings import ServerSettings

logger = logging.getLogger(__name__)
ENGINE_DIED = "the engine has died; see the log above"
FAREWELL_SECONDS = 2  # what clients and load balancers get to see why their requests have ended
MAX_HEADER_BYTES = 32 * 1024
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; a port of 0 takes a free one. Until a server runs, it refuses connections.

    Raise OSError, in words for the user, if the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"--host {host}: not an address of this machine ({error.strerror or error})") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the address of a socket as a client writes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves an app until it is told to stop or its engine dies.

    On SIGTERM or SIGINT it takes no more requests (503), lets the running ones finish for `drain_seconds`, and ends
    those that are left with an error. A second signal ends them at once.
    """

    def __init__(self, app: FastAPI, engine: Engine, settings: ServerSettings) -> None:
        """Prepare a server of the app of `create_app`. The engine belongs to the caller, who has started it."""
        options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(
            uvicorn.Config(
                AccessLog(app, bodies=settings.log_requests),
                http=bounded_by(settings),
                loop="asyncio",
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=FAREWELL_SECONDS,
                backlog=BACKLOG,
                **options,
            )
        )
        self.engine, self.drain_seconds = engine, settings.drain_seconds
        self.requests: Running = app.state.running
        self.failure: str | None = None
        self._num_signals = 0
        self._halt_at: float | None = None  # when running requests are ended; None: not in sight
        self._leave_at: float | None = None  # when the server ends whatever still runs

    def serve_on(self, bound: socket.socket) -> str | None:
        """Serve until the end. Return None if the server was told to stop, else why it has failed."""
        self.run([bound])
        return self.failure

    def stop(self) -> None:
        """Begin to end, as on SIGTERM; from any thread."""
        self._num_signals += 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. uvicorn would stop at once, and then raise the signal again, so the process would fail."""
        logger.info("received %s", signal.Signals(sig).name)
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server ends now; called ten times a second."""
        if await super().on_tick(counter):
            return True
        now = time.monotonic()
        if self.failure is None and not self.engine.alive:
            self._fail(now)
        elif self._num_signals and self._halt_at is None:
            self._drain(now)
        if self._halt_at is None:
            return False
        if self._leave_at is None and (now >= self._halt_at or self._num_signals > 1):
            self.requests.halt(unavailable(self.failure or "the server is stopping"))
            self._leave_at = now + FAREWELL_SECONDS
        if self.failure is None and self.requests.num_running == 0:
            return True
        return self._leave_at is not None and now >= self._leave_at

    def _drain(self, now: float) -> None:
        """Take no more requests, and let the running ones finish."""
        self._halt_at = now + self.drain_seconds
        self.requests.refuse(unavailable("the server is stopping"))
        running = self.requests.num_running
        logger.info("stopping; %s running requests have %g seconds to finish", running, self.drain_seconds)

    def _fail(self, now: float) -> None:
        """End all requests, since the engine has died."""
        self.failure, self._halt_at = ENGINE_DIED, now
        logger.critical("%s; ending, so that a supervisor can start this server again", ENGINE_DIED)
