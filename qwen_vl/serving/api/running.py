"""Requests on their way: how many there may be, and what ends one early."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from qwen_vl.serving.protocol.errors import ApiError

Result = TypeVar("Result")

RETRY_SECONDS = 2  # what a client that came at a busy moment is told to wait


class Running:
    """The requests that a server works on. Its methods belong to the event loop."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests = max_requests
        self.num_running = 0
        self.refused: ApiError | None = None  # why no request is taken any more
        self._halted = asyncio.Event()
        self._halt_error: ApiError | None = None

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Count one request while it runs. Raise ApiError if there are too many (429) or no more is taken (503)."""
        if self.refused:
            raise self.refused
        if self.num_running >= self.max_requests:
            raise too_busy()
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    def refuse(self, error: ApiError) -> None:
        """Take no more requests: each gets `error`. The running ones go on."""
        self.refused = self.refused or error

    def halt(self, error: ApiError) -> None:
        """End the running requests with `error`, and take no more."""
        self.refuse(error)
        self._halt_error = error
        self._halted.set()

    async def guard(self, work: Coroutine[Any, Any, Result], receive: Receive, *, seconds: float) -> Result:
        """Return what `work` returns, whose request has been read.

        It is canceled, and its end awaited, before this raises: ClientDisconnect if the client goes away, ApiError
        after `seconds` (504) and on `halt`.
        """
        task = asyncio.ensure_future(work)
        ends = [asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self._halted.wait())]
        try:
            await asyncio.wait([task, *ends], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if ends[0].done():
                raise ClientDisconnect
            if self._halt_error:
                raise self._halt_error
            raise ApiError(
                504, f"the request took longer than {seconds:g} seconds", kind="server_error", code="timeout"
            )
        finally:
            for future in [task, *ends]:
                future.cancel()
            await asyncio.gather(task, *ends, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def too_busy() -> ApiError:
    """Return the error of a request that there is no room for."""
    message = "the server is busy with other requests; try again"
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=RETRY_SECONDS)


def unavailable(reason: str) -> ApiError:
    """Return the error of a server that takes no requests."""
    return ApiError(503, reason, kind="server_error", code="unavailable", retry_after=RETRY_SECONDS)
