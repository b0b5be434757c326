"""Freed memory on a CPU: a process that keeps it gets no new pages from the system in the next step."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from qwen_vl.training.distributed.host_memory import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
for size in (2**26, 2**25):  # 256 MiB, then half of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size).fill_(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_large_tensors_get_the_memory_of_those_before_them():
    faults = {}
    for way in ("kept", "returned"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        kept, faults[way] = done.stdout.split()
        assert kept == str(way == "kept")
    assert int(faults["kept"]) < 100  # of 32,768 pages
    assert int(faults["kept"]) < int(faults["returned"])
