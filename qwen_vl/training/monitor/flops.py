"""How fast the machine at hand multiplies matrices, and how long a task takes there.

The operations that a model needs are counted by `families`.
"""

import time
from functools import cache

import torch

PEAK_SECONDS = 0.1  # for how long `measured_peak` multiplies matrices of one size
PEAK_SIZES = {"cpu": (512, 1024), "other": (4096, 8192)}


@cache
def measured_peak(device, dtype=torch.float32, seconds=PEAK_SECONDS):
    """Operations a second that this machine reaches in a large product of matrices: the most that training can have.

    The best of several sizes and repetitions, with the threads that this process uses; measured once.
    """
    device, best, generator = torch.device(device), 0.0, torch.Generator().manual_seed(0)
    for size in PEAK_SIZES.get(device.type, PEAK_SIZES["other"]):
        matrix = torch.randn(size, size, generator=generator).to(device, dtype)
        out, until = matrix @ matrix, time.perf_counter() + seconds
        while True:
            took = seconds_of(lambda m=matrix, o=out: torch.mm(m, m, out=o), device)
            best = max(best, 2 * size**3 / took)
            if time.perf_counter() > until:
                break
    return best


def seconds_of(task, device):
    """How long a task takes on the device, everything queued before it not counted."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    task()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
