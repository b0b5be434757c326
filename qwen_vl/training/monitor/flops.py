"""Measured speed of this machine: matrix products, and the time of a task.

`families` counts the operations of a model.
"""

import time
from collections.abc import Callable
from functools import cache, partial

import torch

PEAK_SECONDS = 0.1  # for how long `measured_peak` multiplies matrices of one size
PEAK_SIZES = {"cpu": (512, 1024), "other": (4096, 8192)}


@cache
def measured_peak(
    device: torch.device | str, dtype: torch.dtype = torch.float32, seconds: float = PEAK_SECONDS
) -> float:
    """Return the operations a second of large matrix products here, an upper bound for training.

    The result is the best of several sizes and repetitions, with this process's threads; measured once.
    """
    device, best, generator = torch.device(device), 0.0, torch.Generator().manual_seed(0)
    for size in PEAK_SIZES.get(device.type, PEAK_SIZES["other"]):
        matrix = torch.randn(size, size, generator=generator).to(device, dtype)
        out, until = matrix @ matrix, time.perf_counter() + seconds
        while True:
            took = seconds_of(partial(torch.mm, matrix, matrix, out=out), device)
            best = max(best, 2 * size**3 / took)
            if time.perf_counter() > until:
                break
    return best


def seconds_of(task: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a task takes on the device, excluding work queued before it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    task()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
