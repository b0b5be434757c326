"""How a process that trains on a CPU gets its memory from the C library."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**30  # what is larger still goes back at once, as a hole of that size would be too dear
NEVER = 2**31 - 1


def keep_freed_memory():
    """Whether memory of large tensors stays with this process when they are freed, to be used by the next ones.

    By default glibc hands anything above some MiB back to the system at once, which then has to clear each page of the
    next tensor: up to half of the time of a step. The peak is about the same, as the next step needs it again. Other
    C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, NEVER))
