"""docs/hubs.md: its commands and ModelScope's sample run, with a server on this machine in place of the hubs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers import hub_server, runs

from qwen_vl.cli import main as cli_main
from qwen_vl.export.export import export

TEXT = (runs.ROOT / "docs/hubs.md").read_text(encoding="utf-8")
SHORT = {  # what makes a command quick here
    "chat": ["--device", "cpu"],
    "train": ["--use_cpu", "--max_steps", "1", "--save_strategy", "no", "--dataloader_num_workers", "0"],
}


@pytest.fixture
def hub(make_checkpoint, monkeypatch, tmp_path):
    """Yield a Hub with a tiny exported model of the published name, and go to a folder with what the page names."""
    export(make_checkpoint(), output_dir=tmp_path / "model")
    (tmp_path / "photos").mkdir()
    shutil.copy(runs.GOLDEN / "images/photo.jpg", tmp_path / "photos/dog.jpg")
    shutil.move(runs.write_data(tmp_path, [("photos/dog.jpg", "What?", "A dog.")]), tmp_path / "my_data.json")
    monkeypatch.chdir(tmp_path)
    with hub_server.hub_server() as server:
        hub_server.use(server, monkeypatch, tmp_path, token=hub_server.TOKEN)
        repo = server.add("qwen/Qwen-VL-Chat", tmp_path / "model")
        repo.revisions["v1.0"] = repo.revisions["master"]
        yield server


def code(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_page_run(hub, tmp_path, capsys):
    hub.add("my-name/my-qwen-vl", {}, private=True)
    hub.add("my-name/my-adapter", {})
    lines = [shlex.split(line, comments=True) for block in code("sh") for line in block.splitlines()]
    words = [line[1:] for line in lines if line[0] == "qwen-vl"]
    assert len(words) == 6
    for verb, *arguments in words:
        cli_main.main([verb, *arguments, *SHORT.get(verb, [])])
    base = json.loads((tmp_path / "output/lora/base.json").read_text())
    assert base["name"] == "ms:qwen/Qwen-VL-Chat", "merge found the base on its hub"
    assert "model.safetensors" in hub.repos["model", "my-name/my-qwen-vl"].revisions["main"]
    files = hub.repos["model", "my-name/my-adapter"].revisions["master"]
    assert json.loads(files["base.json"])["name"] == "ms:qwen/Qwen-VL-Chat"
    assert "base_model: ms:qwen/Qwen-VL-Chat" in files["README.md"].decode()
    assert capsys.readouterr().out.count("uploaded to") == 2


@pytest.mark.slow  # another process, which imports everything
def test_the_sample_of_modelscope_runs_on_an_exported_model(hub, tmp_path):
    """In a process that has never heard of this project."""
    (sample,) = code("python")
    (tmp_path / "sample.py").write_text(sample, encoding="utf-8")
    environment = {name: os.environ[name] for name in ("PATH", "MODELSCOPE_ENDPOINT", "MODELSCOPE_CACHE")}
    environment |= {"PYTHONPATH": str(runs.Path(runs.torch.__file__).parents[1]), "HOME": str(tmp_path)}
    command = [sys.executable, "-S", "sample.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "What is in the image?" in done.stdout and hub.downloads("model.safetensors")
