"""What docs/index.md says to do without the published weights: a tiny random model, trained, merged, asked."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.commands import exit_code
from helpers.runs import script

from qwen_vl.cli import random_model

ROOT = Path(__file__).resolve().parents[1]


def test_the_commands_work_in_this_order(tmp_path, monkeypatch, capsys):
    """As they stand, but for the folder of the outputs; only the launcher has a process of its own."""
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    section = page.partition("\n## Without the published weights\n")[2]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1]
    build, train, merge, chat = (shlex.split(line.replace("output/", f"{tmp_path}/")) for line in block.splitlines())

    assert build[:3] == ["python", "-m", "qwen_vl.cli.random_model"]
    random_model.main(build[3:])
    environment = {**os.environ, "VENV": sys.prefix, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(train, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "step 3/3" in done.stderr, done.stderr
    assert merge[:2] == ["python", "scripts/merge_and_unload.py"]
    script("merge_and_unload").main(merge[2:])
    assert (tmp_path / "tiny-merged/model.safetensors").exists()
    capsys.readouterr()
    assert chat[0] == "qwen-vl" and exit_code(chat[1:]) == 0
    assert capsys.readouterr().out.strip()
