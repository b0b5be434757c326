"""Settings of the C library's memory allocator for training on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**30  # bytes; larger blocks are still returned at once, since holes of that size would waste too much
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed large tensors for the next ones; return whether that worked.

    By default glibc returns blocks above some MiB to the system at once. The system then clears each page of the next
    tensor, which takes up to half of a step's time. The peak stays about the same, since the next step needs the memory
    again. Other C libraries keep their settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, NEVER))
