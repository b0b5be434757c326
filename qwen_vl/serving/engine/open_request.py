"""A request from its arrival to its last event."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection

import torch

from qwen_vl.serving.image_table import ImageRange

from .values import EngineRequest, Event, Finish

logger = logging.getLogger(__name__)


class OpenRequest:
    """What an engine knows of an open request. `close` sends the last event, once, whoever calls it first."""

    def __init__(
        self,
        name: str,
        request: EngineRequest,
        on_event: Callable[[Event], None],
        on_close: Callable[["OpenRequest"], None],
        ends: Collection[int],
        seconds: float | None,
    ) -> None:
        self.name, self.request, self.on_event, self.on_close, self.ends = name, request, on_event, on_close, ends
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.ranges: list[ImageRange] = []
        self.ids: list[int] = []  # of the answer, its end token included
        self.num_cached = 0
        self.device_failed = False  # in its work, after which the device of this process does nothing more
        self.closed = threading.Event()
        self.lock = threading.RLock()

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the answer has."""
        return len(self.ids)

    def push(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Send new ids. They are the last ones after an end token, which is left out, or by their number."""
        with self.lock:
            if self.closed.is_set():
                return
            self.ids += ids
            finish: Finish | None = "length" if self.num_tokens >= self.request.max_new_tokens else None
            if ids and ids[-1] in self.ends:
                finish, ids, logprobs = "stop", ids[:-1], logprobs and logprobs[:-1]
            wanted = logprobs if self.request.logprobs else None
            if finish:
                self.close(finish, ids=ids, logprobs=wanted)
            elif ids:
                self._send(Event(ids, wanted, num_cached=self.num_cached))

    def close(
        self,
        finish: Finish,
        error: str | None = None,
        *,
        ids: list[int] | None = None,
        logprobs: list[float] | None = None,
    ) -> None:
        """Send the last event, unless it was sent."""
        with self.lock:
            if self.closed.is_set():
                return
            self.closed.set()
        self.on_close(self)
        self._send(Event(ids or [], logprobs, finish, error, self.num_cached))

    def _send(self, event: Event) -> None:
        try:
            self.on_event(event)
        except Exception:  # a receiver's mistake must not end the thread that serves the others
            logger.exception("request %s: its receiver failed", self.name)
            self.close("cancelled")


def attempt(opened: OpenRequest, work: Callable[[OpenRequest], None]) -> None:
    """Do some work of a request, unless it is over. An error ends it."""
    if opened.closed.is_set():
        return
    try:
        work(opened)
    except Exception as error:
        logger.exception("request %s failed", opened.name)
        opened.device_failed = isinstance(error, torch.AcceleratorError)
        opened.close("error", str(error))


def work_through(source: "queue.Queue[OpenRequest | None]", work: Callable[[OpenRequest], None]) -> None:
    """Do the work of each request of a queue, until None comes. An error ends that request alone."""
    while (opened := source.get()) is not None:
        attempt(opened, work)
