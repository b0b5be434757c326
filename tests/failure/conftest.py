"""Runs with injected faults, each in its own processes; without faults they equal those of `runs.train`."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import runs


class Warm:
    """Runner of finetune.main in forks of a process that has imported everything: see warm.py."""

    def __init__(self, folder):
        self._log, self.said = Path(folder, "log"), []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert json.loads(self._process.stdout.readline()) == "ready"

    def run(self, argv, *, ranks=1, limit=120, **request):
        """Return the exit code of each process; `said` then has their output. Faults: {rank: fault}, see `warm.arm`."""
        request |= {"argv": argv, "ranks": ranks, "limit": limit, "log": str(self._log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        self.said = [Path(f"{self._log}.{rank}").read_text(errors="replace") for rank in range(ranks)]
        return codes

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Return a Warm, closed at the end."""
    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def survived():
    """Return a Counter of the faults that runs of this session have survived, by kind; printed at the end."""
    counts = Counter()
    yield counts
    if counts:
        print(f"\nfaults survived: {sum(counts.values())} ({', '.join(f'{n} {kind}' for kind, n in counts.items())})")
