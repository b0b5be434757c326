"""`qwen-vl evaluate` in processes: their number leaves no trace, and neither do kills."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from helpers import runs

from qwen_vl.cli import evaluate

LAUNCHER = runs.ROOT / "scripts" / "evaluate.sh"
PROGRAM = (sys.executable, "-m", "qwen_vl.cli", "evaluate")


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


@pytest.fixture
def flags(make_checkpoint, data_dir):
    """Return the flags of a command that answers in batches of two, on the CPU."""
    words = (make_checkpoint(), "--benchmarks", "refcoco_testA", "--data_dir", data_dir, "--batch_size", 2)
    return [*map(str, words), "--device", "cpu", "--max_new_tokens", "12"]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **more}


def launch(flags, output, nproc):
    command = ["sh", str(LAUNCHER), *flags, "--output_dir", str(output)]
    return subprocess.run(
        command, env=environment(NPROC=str(nproc)), cwd=output.parent, capture_output=True, text=True, timeout=300
    )


def alone(flags, output):
    """Return the started process of a run in one process."""
    command = [*PROGRAM, *flags, "--output_dir", str(output)]
    return subprocess.Popen(command, cwd=runs.ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answers(output):
    (path,) = output.glob("*/*/answers.jsonl")
    assert not list(path.parent.glob("answers.rank-*"))
    return path.read_bytes()


def test_two_processes_after_a_killed_one_leave_what_one_leaves(flags, tmp_path):
    killed = alone(flags, tmp_path / "killed")
    evaluate.main([*flags, "--output_dir", str(tmp_path / "whole")])
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in (tmp_path / "killed").glob("*/*/answers.rank-*")):
        assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    done = launch(flags, tmp_path / "killed", 2)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "answered before" in line]
    num_reused = int(line.split(", ")[-1].split()[0])
    assert 2 <= num_reused < 24 and f"{24 - num_reused} of 24 answered" in line
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")
    assert len(answers(tmp_path / "whole").splitlines()) == 24
    assert not runs.noise(done.stderr) and done.stdout.count("refcoco_testA") == 1


@pytest.mark.slow
def test_all_processes_end_with_one_error(flags, tmp_path):
    wrong = [word.replace("refcoco_testA", "refcoco_testB") for word in flags]
    done = launch(wrong, tmp_path / "r", 2)
    assert done.returncode == 1 and done.stderr.count("refcoco_testB.jsonl is missing") == 1, done.stderr
    lines = set(done.stderr.splitlines()) - set(runs.noise(done.stderr))
    assert sum(line.startswith("error: ") for line in lines) == 2, done.stderr  # the other one is torchrun's


@pytest.mark.slow
def test_kills_at_random_places(flags, tmp_path):
    evaluate.main([*flags, "--output_dir", str(tmp_path / "whole")])
    expected, chance, num_killed = answers(tmp_path / "whole"), random.Random(0), 0
    for trial in range(6):
        output = tmp_path / str(trial)
        for _ in range(3):
            process = alone(flags, output)
            time.sleep(chance.uniform(5, 12))
            num_killed += process.poll() is None
            process.kill()
            process.communicate()
        done = launch(flags, output, chance.choice([1, 2, 3]))
        assert done.returncode == 0, done.stderr
        assert answers(output) == expected
    assert num_killed > 3
