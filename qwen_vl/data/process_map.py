"""A parallel map: one function over many chunks, in worker processes."""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

AHEAD = 3  # chunks queued for each process, so that none is idle and few are in memory

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None  # of this worker process


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def process_map(function: Callable[[Item], Result], chunks: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield function(chunk) for every chunk, in order, computed in `workers` processes.

    With one worker, or one chunk, no process is started. Chunks are taken as they are needed, so the iterable may be
    endless. Raise what the function raises, and ValueError if a process dies.
    """
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if workers == 1 or len(first) < 2:
        yield from map(function, chunks)
        return
    # fork hands the function over as it is; elsewhere (spawn) it is pickled, once a process.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    waiting: deque[Future] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function,)) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_call, chunk))
                if len(waiting) == AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, mostly for want of memory; use fewer --workers, or --workers 1 to see where"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that started this one


def _call(chunk: object) -> object:
    assert _function is not None
    return _function(chunk)
