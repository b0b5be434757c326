"""The end of a command that is one of several processes."""

import subprocess
import sys

import pytest
from helpers import runs

ONE_OF_SEVERAL = """
import atexit, os, sys
from torch import distributed
from qwen_vl.cli.run import run

class Last:
    def __del__(self, write=os.write):
        write(1, b"end of Python")

def main(argv):
    store = distributed.FileStore(argv[0], 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    exec(argv[1])

atexit.register(print, "registered")
sys.last = Last()
run(main)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(143)", 143), ("raise ValueError('no')", 1), ("raise KeyboardInterrupt", 130)],
)
def test_one_of_several_processes_skips_the_shutdown_of_python(tmp_path, end, code):
    """Skip the end of Python, where a thread of gloo may abort the process. Exit code and atexit stay the same."""
    command = [sys.executable, "-c", ONE_OF_SEVERAL, str(tmp_path / "store"), end]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (code, "registered\n"), done.stderr
