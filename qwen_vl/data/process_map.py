"""One function over many chunks, in processes of its own."""

import multiprocessing
import signal
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice

AHEAD = 3  # chunks a process has waiting, so that none idles and little is in memory

_function = None  # of this worker process


def chunked(items, size):
    """Yields lists of `size` items, the last one shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def process_map(function, chunks, *, workers):
    """Yields function(chunk) for every chunk, in order, computed in `workers` processes.

    With one worker, or one chunk, no process is started. Chunks are taken as they are needed: an endless iterable is
    fine. Raises what the function raises, and ValueError where a process dies.
    """
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if workers == 1 or len(first) < 2:
        yield from map(function, chunks)
        return
    # fork hands the function over as it is; elsewhere (spawn) it is pickled, once a process.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    waiting = deque()
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


def _start(function):
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that started this one


def _call(chunk):
    return _function(chunk)
