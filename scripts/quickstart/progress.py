"""Progress of the quickstart: elapsed minutes, an estimate of the rest, and whether the machine is busy.

`python scripts/quickstart/progress.py MARKS.json STAGE TEXT` prints the headline of a new stage and adds a mark to the
file. It only reads clocks and runs short loops, so it works on any platform.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from qwen_vl.cli.run import run
from qwen_vl.startup import usable_cores

STAGES = {  # stage of scripts/quickstart.sh: its seconds on 2 idle cores
    "data": 20,
    "boxes": 210,
    "full": 300,
    "lora": 180,
    "merge": 10,
    "chat": 10,
    "report": 80,
    "done": 0,
}
TRUSTED = 60  # seconds of STAGES that count as measured here, so a short first stage has little weight
BUSY_BELOW = 0.8  # share of the cores; on an idle desktop other programs use less than the rest
PROBED_CORES = 8  # at the most; enough to measure a machine with more cores
# Computes for half a second and prints the share of that time in which it had a core.
PROBE = """
import time
end, start = time.monotonic() + 0.5, time.monotonic()
while time.monotonic() < end:
    sum(range(1000))
print(time.process_time() / (time.monotonic() - start))
"""


class Mark(NamedTuple):
    """The start of a stage: its name, the time (seconds since 1970) and the free share of the cores."""

    stage: str
    time: float
    free: float


def free_share() -> float:
    """Return the share of this machine's cores, from 0 to 1, that is free for a program that uses all of them.

    The load average covers the last minute and so includes the stage that just ended. This measurement does not, and it
    respects the limit of a container.
    """
    command = [sys.executable, "-I", "-S", "-c", PROBE]
    count = min(usable_cores(), PROBED_CORES)
    probes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    shares = [float(probe.communicate()[0]) for probe in probes]
    return min(1.0, max(0.01, sum(shares) / len(shares)))


def minutes_left(marks: list[Mark]) -> float:
    """Return the minutes from the last mark to the end, with the share of the machine that was free at that mark.

    The seconds of the remaining stages are corrected by those of the stages so far, scaled to an idle machine.
    """
    seen = known = TRUSTED
    for begin, end in pairwise(marks):
        seen += (end.time - begin.time) * (begin.free + end.free) / 2
        known += STAGES[begin.stage]
    names = list(STAGES)
    left = sum(STAGES[name] for name in names[names.index(marks[-1].stage) :])
    return left * seen / known / marks[-1].free / 60


def headline(marks: list[Mark], text: str) -> str:
    """Return the headline to print at the last mark; text: the description of the stage."""
    now, passed = marks[-1], (marks[-1].time - marks[0].time) / 60
    if now.stage == list(STAGES)[-1]:
        return f"\n=== {passed:.0f} min: {text}"
    expected = max(1, round(minutes_left(marks)))
    left = f"{expected} more minute{'s' * (expected > 1)}"
    lines = [f"\n=== {passed:.0f} min, about {left} to go: {text}"]
    if now.free < BUSY_BELOW:
        cores = usable_cores()
        load = f"load {os.getloadavg()[0]:.1f} on" if hasattr(os, "getloadavg") else "other programs on"
        got = f"{load} {cores} core{'s' * (cores > 1)}, {now.free:.0%} of them free"
        lines.append(f"this machine is busy ({got}): expect about {left}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the headline of the stage in the command line."""
    parser = argparse.ArgumentParser(prog="python scripts/quickstart/progress.py", description=__doc__.splitlines()[0])
    parser.add_argument("marks", help="JSON file of the stages so far; without one the first stage begins")
    parser.add_argument("stage", choices=STAGES, help="what begins")
    parser.add_argument("text", help="what to say of it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    path = Path(args.marks)
    marks = [Mark(*mark) for mark in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    marks.append(Mark(args.stage, time.time(), free_share()))
    path.write_text(json.dumps(marks) + "\n", encoding="utf-8")
    print(headline(marks, args.text), flush=True)


if __name__ == "__main__":
    run(main)
