"""The answers of one request on their way from the engine's threads to the event loop."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from qwen_vl.serving.api.errors import INTERNAL
from qwen_vl.serving.api.running import too_busy, unavailable
from qwen_vl.serving.engine import (
    Engine,
    EngineRequest,
    EngineStopped,
    Event,
    PromptTooLong,
    QueueFull,
    UnknownModel,
)
from qwen_vl.serving.protocol.errors import ApiError, invalid

logger = logging.getLogger(__name__)
TICK_SECONDS = 5.0


class Answers:
    """Open requests of an engine, by their number, and the events that come for them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancel: dict[int, Callable[[], None]] = {}
        self._ticker = self._loop.call_later(TICK_SECONDS, self._tick)

    def begin(self, index: int, request: EngineRequest) -> None:
        """Submit a request. Errors: `Engine.submit`."""

        def on_event(event: Event) -> None:  # called by threads of the engine
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        self._cancel[index] = self.engine.submit(request, on_event)

    def end(self, index: int) -> None:
        """Cancel a request if it still runs. None of its events comes any more."""
        self._cancel.pop(index, lambda: None)()

    def end_all(self) -> None:
        """Cancel all requests that still run."""
        self._ticker.cancel()
        for index in [*self._cancel]:
            self.end(index)

    def _tick(self) -> None:
        """Add an event that says nothing."""
        self._ticker = self._loop.call_later(TICK_SECONDS, self._tick)
        self._events.put_nowait((next(iter(self._cancel), 0), Event([])))

    async def next(self) -> tuple[int, Event] | None:
        """Return the number of a request and its next event; None if all have ended.

        Now and then it returns an event without ids, so that a caller can keep a quiet connection alive.
        Raise ApiError if the engine fails on a request: 503 if it has died, otherwise 500.
        """
        while self._cancel:
            index, event = await self._events.get()
            if index not in self._cancel:
                continue
            if event.finish in ("error", "cancelled"):
                logger.error("the engine failed on a request: %s", event.error)
                raise INTERNAL if self.engine.alive else unavailable("the engine has stopped")
            if event.finish:
                self.end(index)
            return index, event
        return None


@contextlib.contextmanager
def begun(engine: Engine, requests: Sequence[EngineRequest]) -> Iterator[Answers]:
    """Submit requests, and cancel those that still run at the end. Raise ApiError if the engine refuses one."""
    answers = Answers(engine)
    try:
        try:
            for index, request in enumerate(requests):
                answers.begin(index, request)
        except (QueueFull, EngineStopped, ValueError) as error:
            raise refusal(error) from None
        yield answers
    finally:
        answers.end_all()


def refusal(error: Exception) -> ApiError:
    """Return what a client gets for an error of `Engine.submit`."""
    if isinstance(error, QueueFull):
        return too_busy()
    if isinstance(error, EngineStopped):
        return unavailable("the engine has stopped")
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, PromptTooLong):
        return invalid("messages", str(error), "context_length_exceeded")
    return ApiError(400, str(error))
