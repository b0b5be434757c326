"""What commands set before torch is imported, for themselves alone: how threads wait, and what libraries may say."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from helpers import runs

from qwen_vl import startup
from qwen_vl.checkpoint import quantization

ROOT = Path(__file__).resolve().parents[1]
SET = {"GOMP_SPINCOUNT": startup.SPIN_COUNT}


@pytest.fixture
def machine(monkeypatch):
    """Return a function that imitates another machine: its build of torch, device files, environment, system."""

    def pretend(build="2.13.0", files=(), platform="linux", **environment):
        monkeypatch.setattr(metadata, "version", lambda _: build)
        monkeypatch.setattr(startup, "glob", lambda pattern: [f for f in files if f.startswith(pattern.rstrip("*"))])
        monkeypatch.setattr(sys, "platform", platform)
        for name in (*startup.THREAD_CHOICES, *startup.GPU_CHOICES):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


NVIDIA = {"files": ("/dev/nvidia0", "/dev/nvidiactl")}


@pytest.mark.parametrize(
    ("computer", "words", "expected"),
    [
        ({}, [], SET),
        ({"build": "2.13.0+cpu", **NVIDIA}, [], SET),
        ({"build": "2.13.0+cu130"}, [], SET),
        (NVIDIA, [], {}),
        ({"files": ("/dev/dxg",)}, [], {}),
        ({"files": ("/dev/kfd",)}, ["chat", "model"], {}),
        ({"files": ("/dev/nvme0n1", "/dev/dri")}, [], SET),
        ({"build": "2.13.0+xpu"}, [], {}),
        ({"build": "2.13.0+xpu", "CUDA_VISIBLE_DEVICES": ""}, [], {}),
        ({**NVIDIA, "CUDA_VISIBLE_DEVICES": ""}, [], SET),
        ({**NVIDIA, "CUDA_VISIBLE_DEVICES": "-1"}, [], SET),
        ({**NVIDIA, "CUDA_VISIBLE_DEVICES": "1"}, [], {}),
        (NVIDIA, ["--use_cpu"], SET),
        (NVIDIA, ["--use-cpu=true", "--bf16"], SET),
        (NVIDIA, ["train", "--use_cpu", "--bf16", "True"], SET),
        (NVIDIA, ["--no_cuda", "yes"], SET),
        (NVIDIA, ["--use_cpu", "True", "--use_cpu", "False"], {}),
        (NVIDIA, ["--use_cpu=no"], {}),
        (NVIDIA, ["--output_dir", "use_cpu"], {}),
        (NVIDIA, ["settings.yaml"], SET),
        (NVIDIA, ["train", "settings.yaml", "--bf16", "False"], SET),
        (NVIDIA, ["settings.yaml", "--use_cpu", "False"], {}),
        (NVIDIA, ["missing.yaml"], {}),
        ({"OMP_WAIT_POLICY": "active"}, ["--use_cpu"], {}),
        ({"GOMP_SPINCOUNT": "5"}, [], {}),
        ({"platform": "darwin"}, [], {}),
    ],
)
def test_threads_of_cpu_runs_sleep_unless_the_user_decided(machine, tmp_path, monkeypatch, computer, words, expected):
    machine(**computer)
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("bf16: false\nuse_cpu: true  # slow\n")
    assert startup.thread_settings(words) == expected


def test_the_stages_of_the_quickstart_are_cpu_runs(machine):
    machine(**NVIDIA)
    configs = sorted(ROOT.glob("configs/train/quickstart_*.yaml"))
    assert len(configs) == 3
    for config in configs:
        assert startup.thread_settings([str(config), "--model_name_or_path", "tiny"]) == SET, config


def test_a_shell_gets_the_settings():
    """As scripts/quickstart.sh does; nothing where the user has set one."""
    words = [sys.executable, "-m", "qwen_vl.startup", "--use_cpu"]
    environment = {name: value for name, value in os.environ.items() if name not in startup.THREAD_CHOICES}
    for given, expected in (({}, f"export GOMP_SPINCOUNT={startup.SPIN_COUNT}\n"), ({"OMP_WAIT_POLICY": "active"}, "")):
        done = subprocess.run(words, cwd=ROOT, env=environment | given, capture_output=True, text=True, check=True)
        assert done.stdout == (expected if sys.platform.startswith("linux") else "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch brings another OpenMP on other systems")
def test_libgomp_reads_what_a_command_sets(tmp_path):
    """In the process that trains, from its first import on; and that process says nothing of other libraries."""
    (tmp_path / "settings.yaml").write_text("use_cpu: true\n")
    environment = {name: value for name, value in os.environ.items() if name not in startup.THREAD_CHOICES}
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), str(tmp_path / "settings.yaml")],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--data_path is missing" in done.stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [startup.SPIN_COUNT], done.stderr
    assert not runs.noise(done.stderr)


COMMANDS = """
import io, json, sys
from qwen_vl.cli import main as cli
for command in json.loads(sys.argv[1]):
    sys.stdin = io.StringIO("Hello\\n/quit\\n")
    cli.entry(command)
"""


def test_commands_say_nothing_of_other_libraries(make_checkpoint, make_int4_checkpoint, tmp_path):
    """A process each in life; here one, in which what libraries say at their import comes once."""
    base, int4 = str(make_checkpoint()), str(make_int4_checkpoint())
    adapter = runs.train(base, tmp_path / "adapter", "--use_lora", max_steps=1)
    data, out = str(runs.write_data(tmp_path)), str(tmp_path / "out")
    commands = [
        ["plan", "--model", base],
        ["data", "preview", data, "--model", base, "--image_folder", str(runs.GOLDEN), "--out", f"{out}.html"],
        ["chat", str(adapter)],
        ["merge", str(adapter), out],
        ["train", *runs.command(int4, tmp_path / "q", "--q_lora", max_steps=1, logging_steps=5)],
        ["verify", int4, int4],
        ["chat", str(tmp_path / "q")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Ours, and right where no installed font has Chinese characters.
    others = [line for line in runs.noise(done.stdout + done.stderr) if "no font for the characters" not in line]
    assert not others
    assert "saved to" in done.stderr and "agree" in done.stderr  # what is ours stays


@pytest.fixture
def levels(monkeypatch):
    """Return the loggers that `quiet_libraries` sets, as a fresh process has them, and as they were afterwards."""
    names = (*startup.ERRORS_ONLY, *startup.UNWANTED_LINES)
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).filters)) for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).filters.clear()
    yield
    for name, (level, filters) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).filters[:] = filters


def test_errors_and_the_users_own_settings_stay(levels, monkeypatch, caplog):
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        startup.quiet_libraries()
        warnings.warn("old name", FutureWarning)
        warnings.warn("an image is damaged", UserWarning)
        assert [str(warning.message) for warning in shown] == ["an image is damaged"]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "warnoptions", ["always"])  # python -W always
        startup.quiet_libraries()
        warnings.warn("old name", FutureWarning)
        assert len(shown) == 1
    for name in startup.ERRORS_ONLY:
        logging.getLogger(name).warning("a kernel is missing")
        logging.getLogger(name).error("it broke: %s", name)
    for name, text in startup.UNWANTED_LINES.items():
        logging.getLogger(name).warning(f"{text}: as ever")
        logging.getLogger(name).warning("something else")
    said = [record.getMessage() for record in caplog.records]
    assert "a kernel is missing" not in said and said.count("something else") == len(startup.UNWANTED_LINES)
    assert sum(text.startswith("it broke") for text in said) == len(startup.ERRORS_ONLY)
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"


@pytest.mark.parametrize("is_command", [False, True])
def test_gptqmodel_is_quiet_in_commands_alone(levels, is_command):
    logbar = pytest.importorskip("logbar")
    log = logbar.LogBar.shared()
    before = log.level
    log.setLevel(logging.INFO)  # as the library sets it
    try:
        if is_command:
            startup.quiet_libraries()
        quantization.quiet_gptqmodel.__wrapped__()
        assert log.level == (logging.ERROR if is_command else logging.INFO)
    finally:
        log.setLevel(before)
