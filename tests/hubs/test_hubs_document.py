"""docs/hubs.md and the hubs in docs/data.md: commands and samples run, with a server here in place of the hubs."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import datasets
import pytest
from helpers import hub_server, runs
from PIL import Image

from qwen_vl.cli import main as cli_main
from qwen_vl.data.sources import hub_data
from qwen_vl.export.export import export

TEXT = (runs.ROOT / "docs/hubs.md").read_text(encoding="utf-8")
DATA = (runs.ROOT / "docs/data.md").read_text(encoding="utf-8")
SHORT = {  # what makes a command quick here
    "chat": ["--device", "cpu"],
    "evaluate": ["--device", "cpu", "--max_new_tokens", "4"],
    "data": [],
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
        server.add("Qwen/Qwen-VL-Chat", tmp_path / "model")
        yield server


def code(language, text=TEXT):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


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
    sent = [*files.values(), *hub.repos["model", "my-name/my-qwen-vl"].revisions["main"].values()]
    assert not [content for content in sent if str(tmp_path).encode() in content], "no path of this machine"


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


@pytest.fixture
def data_set(hub, monkeypatch, tmp_path):
    """Add the data set that docs/data.md names to both hubs: conversations, and columns with images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    hub_data.hub_files.cache_clear()
    talk = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]
    rows = [{"number": n, "color": c, "hint": "Briefly.", "conversations": talk} for n, c in enumerate(("red", "blue"))]
    for row in rows:
        file = io.BytesIO()
        Image.new("RGB", (20, 20), row["color"]).save(file, "PNG")
        row["picture"] = {"bytes": file.getvalue(), "path": None}
    table = datasets.Dataset.from_list(rows).cast_column("picture", datasets.Image())
    table.to_parquet(tmp_path / "up/train.parquet")
    repo = hub.add("my-name/my-set", tmp_path / "up", kind="dataset")
    repo.revisions["v1.0"] = repo.revisions["master"]
    yield repo
    hub_data.hub_files.cache_clear()


def test_the_commands_on_data_of_hubs_run(data_set, tmp_path, capsys):
    part = DATA[DATA.index("## Data sets of hubs") : DATA.index("## Tags")]
    (colors,) = code("yaml", part)
    (tmp_path / "colors.yaml").write_text(colors)
    lines = [shlex.split(line) for block in code("sh", part) for line in block.splitlines()]
    assert len(lines) == 5
    for program, verb, *arguments in lines:
        verb = "train" if program == "python" else verb
        cli_main.main([verb, *arguments, *SHORT[verb]])
    said = capsys.readouterr().out
    assert said.count("no errors") == 2 and "preview.html" in said
    record = json.loads((tmp_path / "output/mine/run.json").read_text())
    assert [entry["name"] for entry in record["data"]] == ["hf:my-name/my-set:train", "my_data.json"]
    (scores,) = (tmp_path / "results").glob("*/*/scores.json")
    assert json.loads(scores.read_text())["counts"]["records"] == 2


def test_images_of_a_hub_train_with_cached_features(data_set, make_checkpoint, tmp_path):
    (colors,) = code("yaml", DATA)
    (tmp_path / "colors.yaml").write_text(colors)
    options = {"data_path": "colors.yaml:2", "vision_cache": tmp_path / "features", "tokenized_cache": tmp_path / "ids"}
    options |= {"use_lora": True, "image_folder": tmp_path, "max_steps": 2}
    first = runs.losses(runs.train(make_checkpoint(), tmp_path / "out", **options))
    assert list((tmp_path / "features").rglob("*.safetensors"))
    again = runs.losses(runs.train(make_checkpoint(), tmp_path / "again", **options))
    assert first == again and len(first) == 2
