"""How a process that trains on a CPU gets its memory from the C library."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST = 2**31 - 1  # of a C int


def keep_freed_memory():
    """Whether memory of large tensors stays with this process when they are freed, to be used by the next ones.

    By default glibc hands anything above some MiB back to the system at once, which then has to clear each page of the
    next tensor: up to half of the time of a step. The peak is about the same, as the next step needs it again. Other
    C libraries have no such switch and are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, MOST) and mallopt(M_TRIM_THRESHOLD, MOST))
