"""The scripts that no other test runs, on small inputs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    """A script of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_data(make_checkpoint, tmp_path, capsys):
    """scripts/benchmark_data.py; without --model it builds configs/model/benchmark.json."""
    words = ["--samples", "6", "--records", "30", "--rounds", "1", "--out", str(tmp_path / "table.md")]
    script("benchmark_data").main(["--model", str(make_checkpoint()), *words])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    for row in ("| packed |", "| padded to 2048 |", "| chatml.encode |", "the cache starts"):
        assert row in table
    assert (ROOT / "configs/model/benchmark.json").is_file()


def test_measure_streaming(capsys):
    """scripts/measure_streaming.py"""
    script("measure_streaming").main(["--records", "300", "--read", "100"])
    assert "MiB" in capsys.readouterr().out


def test_chat_with_folder(make_checkpoint, tmp_path):
    """scripts/chat_with_folder.py in a process that cannot import the package."""
    picture = ROOT / "tests/golden/images/rgb.png"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/chat_with_folder.py",
            make_checkpoint(),
            picture,
            tmp_path / "b.png",
            "hi",
            "a?",
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("assistant:") == 2
