"""python scripts/benchmark_threads.py [--seconds 15] [--settings ..] [--out table.md]

Compare settings of libgomp for how the threads of a CPU run wait for each other, by the tokens a second of
finetune.py in the quickstart's first training: alone on the machine, next to a second training with the same setting,
and next to programs that use every core. `qwen_vl/startup.py` sets the best one. Needs Linux, the extra `demo` and an
idle machine. Takes about 7 minutes on 2 cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.cli.run import run
from qwen_vl.startup import usable_cores
from qwen_vl.terminal import markdown_table

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "GOMP_SPINCOUNT=300000"  # libgomp's own default, set explicitly since finetune.py would set another
SETTINGS = (DEFAULT, "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=1000", "GOMP_SPINCOUNT=10000")
CHOSEN_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")  # not inherited from the shell
CONDITIONS = ("alone", "beside a second training", "beside other programs")
PATIENCE = 90  # longest wait for a first step, in seconds; a longer step counts as none


def build(folder: Path, images: int) -> None:
    """Write the data and the model of the quickstart into a folder, in processes of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (
        [ROOT / "scripts/quickstart/make_data.py", folder / "data", "--limit", images],
        ["-m", "qwen_vl.cli.random_model", ROOT / "configs/model/tiny.json", folder / "tiny"],
    ):
        command = [sys.executable, *map(str, words)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def training(folder: Path, out: Path, setting: str):
    """Run finetune.py with a setting NAME=VALUE and the output folder `out` within this block; yield its process."""
    name, _, value = setting.partition("=")
    environment = {key: text for key, text in os.environ.items() if key not in CHOSEN_BY_USERS} | {name: value}
    flags = {"model_name_or_path": folder / "tiny", "data_path": folder / "data/boxes.json", "output_dir": out}
    flags |= {"max_steps": 1_000_000, "logging_steps": 1, "sample_phases_every": 0, "lr_scheduler_type": "constant"}
    words = [str(word) for flag, given in flags.items() for word in (f"--{flag}", given)]
    command = [sys.executable, ROOT / "finetune.py", ROOT / "configs/train/quickstart_boxes.yaml", *words]
    out.mkdir()
    with open(out / "said.txt", "w") as said, subprocess.Popen(command, env=environment, stderr=said) as process:
        try:
            yield process, out
        finally:
            process.kill()


@contextmanager
def other_programs(count: int):
    """Run `count` processes that compute endlessly within this block."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def steps(out: Path) -> list[dict]:
    """Return the logged steps of finetune.py so far, each with its "time" and "tokens"."""
    path, found = out / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # an unfinished line of the step that just ended
            break
        if "tokens_per_second" in entry:
            found.append(entry | {"tokens": entry["tokens_per_second"] * entry["step_seconds"]})
    return found


def rates(runs: list[tuple], seconds: float) -> list[float]:
    """Return the tokens a second of each training in the same time, which starts when each has made a step.

    Raise ValueError with the end of its output if a training has ended.
    """
    patience = time.time() + PATIENCE
    while not all(steps(out) for _, out in runs) and time.time() < patience:
        check(runs)
        time.sleep(0.2)
    begin = time.time()
    time.sleep(seconds)
    check(runs)
    end = time.time()
    return [sum(s["tokens"] for s in steps(out) if begin < s["time"] <= end) / (end - begin) for _, out in runs]


def check(runs: list[tuple]) -> None:
    """Raise ValueError if a training has ended."""
    for process, out in runs:
        if process.poll() is not None:
            raise ValueError(f"finetune.py: {(out / 'said.txt').read_text().strip().splitlines()[-1]}")


def measure(folder: Path, setting: str, condition: str, seconds: float) -> float:
    """Return the tokens a second of a training; with two trainings, their mean."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch, ExitStack() as stack:
        if condition == "beside other programs":
            stack.enter_context(other_programs(usable_cores()))
        count = 2 if condition == "beside a second training" else 1
        runs = [stack.enter_context(training(folder, Path(scratch, str(n)), setting)) for n in range(count)]
        found = rates(runs, seconds)
    rate = sum(found) / len(found)
    print(f"{setting}, {condition}: {rate:,.0f} tokens/s", file=sys.stderr)
    return rate


def table(found: dict[str, list[float]]) -> str:
    """Return Markdown of {setting: tokens a second in each condition}, with ratios to the first setting."""
    first, rows = next(iter(found.values())), []
    for setting, row in found.items():
        cells = [
            f"{rate:,.0f} ({rate / base:.2f}x)" if base else f"{rate:,.0f}"
            for rate, base in zip(row, first, strict=True)
        ]
        rows.append([f"`{setting}`{', the default of libgomp' * (setting == DEFAULT)}", *cells])
    return markdown_table(["", *CONDITIONS], rows) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print Markdown and write it into --out."""
    parser = argparse.ArgumentParser(prog="benchmark_threads.py", description=__doc__.split("\n\n")[1])
    parser.add_argument("--seconds", type=float, default=15, help="time of each measurement (%(default)s)")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=SETTINGS,
        metavar="NAME=VALUE",
        help="what to compare, the first with the others",
    )
    parser.add_argument("--out", help="file for the table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    wrong = [setting for setting in args.settings if "=" not in setting]
    if wrong or args.seconds <= 0:
        parser.error(f"--settings takes NAME=VALUE, not {wrong[0]}" if wrong else "--seconds takes a number above 0")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(folder, images=300)
        found = {s: [measure(folder, s, condition, args.seconds) for condition in CONDITIONS] for s in args.settings}
    text = f"Tokens a second of a training on {usable_cores()} cores, of each where there are two:\n\n{table(found)}"
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
