"""`qwen-vl evaluate` in processes: their number leaves no trace, and neither do kills."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import runs

from qwen_vl.cli import evaluate

LAUNCHER = runs.ROOT / "scripts" / "evaluate.sh"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a --data_dir of RefCOCO's form: 4 images, 6 expressions each."""
    folder = tmp_path_factory.mktemp("eval_data")
    images = folder / "data/coco/train2014"
    images.mkdir(parents=True)
    rows = []
    for number in range(4):
        shutil.copy(runs.GOLDEN / "images" / f"train_0{number}.jpg", images)
        name = f"data/coco/train2014/train_0{number}.jpg"
        common = {"image": name, "bbox": [1, 2, 30, 40], "width": 64, "height": 64}
        rows += [{**common, "sent": f"the thing {number} {place}"} for place in range(6)]
    path = folder / "data/refcoco/refcoco_testA.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def flags(make_checkpoint, data_dir):
    """Return the flags of a command that answers in batches of two, on the CPU."""
    words = (make_checkpoint(), "--benchmarks", "refcoco_testA", "--data_dir", data_dir, "--batch_size", 2)
    return [*map(str, words), "--device", "cpu", "--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """Return the answers of a run that was not interrupted."""
    output = tmp_path_factory.mktemp("whole")
    evaluate.main([*flags, "--output_dir", str(output)])
    assert len(answers(output).splitlines()) == 24
    return answers(output)


def launch(flags, output, nproc):
    command = ["sh", str(LAUNCHER), *flags, "--output_dir", str(output)]
    return subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NPROC": str(nproc)},
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def started(flags, output):
    """Return the id of a process, forked as starting one takes seconds, that evaluates."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent's are not there
        evaluate.main([*flags, "--output_dir", str(output)])
        code = 0
    finally:
        os._exit(code)


def kill_when(child, output, num_lines, delay=0.0):
    """Kill a process by SIGKILL once it has written so many answers; return whether it was still there."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return False
        with contextlib.suppress(FileNotFoundError):  # it is merged at this moment
            if sum(path.read_bytes().count(b"\n") for path in output.glob("*/*/answers.rank-*")) >= num_lines:
                break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def answers(output):
    (path,) = output.glob("*/*/answers.jsonl")
    assert not list(path.parent.glob("answers.rank-*"))
    return path.read_bytes()


def test_two_processes_after_a_killed_one_leave_what_one_leaves(flags, whole, tmp_path):
    assert kill_when(started(flags, tmp_path / "r"), tmp_path / "r", 4)
    done = launch(flags, tmp_path / "r", 2)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "answered before" in line]
    num_reused = int(line.split(", ")[-1].split()[0])
    assert 4 <= num_reused < 24 and f"{24 - num_reused} of 24 answered" in line
    assert answers(tmp_path / "r") == whole
    assert not runs.noise(done.stderr) and done.stdout.count("refcoco_testA") == 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_kills_at_random_places(flags, whole, tmp_path, seed):
    """Several in a row: while answering, and before and after it."""
    chance = random.Random(seed)
    assert kill_when(started(flags, tmp_path / "r"), tmp_path / "r", 1)
    for _ in range(3):
        kill_when(started(flags, tmp_path / "r"), tmp_path / "r", chance.choice([0, 2]), chance.random() * 0.1)
    assert os.waitpid(started(flags, tmp_path / "r"), 0)[1] == 0
    assert answers(tmp_path / "r") == whole


@pytest.mark.slow
def test_all_processes_end_with_one_error(flags, tmp_path):
    wrong = [word.replace("refcoco_testA", "refcoco_testB") for word in flags]
    done = launch(wrong, tmp_path / "r", 2)
    assert done.returncode == 1 and done.stderr.count("refcoco_testB.jsonl is missing") == 1, done.stderr
    lines = set(done.stderr.splitlines()) - set(runs.noise(done.stderr))
    assert sum(line.startswith("error: ") for line in lines) == 2, done.stderr  # the other one is torchrun's
