"""The tutorial runs from its first cell to its last, on a tiny model; both languages do the same."""

import io
import json
import os
import re
import socket
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from qwen_vl.checkpoint import random_model

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {name: nbformat.read(ROOT / "docs" / name, 4) for name in ("tutorial.ipynb", "tutorial_zh.ipynb")}


def executed(name, folder, monkeypatch):
    """Run a notebook in a kernel of this environment; return {source of a cell: its printed text}."""
    random_model.build(ROOT / "configs/model/tiny.json", folder / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MODEL": folder / "tiny", "WORK": folder / "work", "PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for key, value in settings.items():
        monkeypatch.setenv(key, str(value))
    notebook = nbformat.from_dict(NOTEBOOKS[name])
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return {
        cell.source: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


@pytest.mark.parametrize("name", ["tutorial.ipynb", pytest.param("tutorial_zh.ipynb", marks=pytest.mark.slow)])
def test_the_tutorial_runs(name, tmp_path, monkeypatch):
    printed = executed(name, tmp_path, monkeypatch)
    work = tmp_path / "work"
    losses = [json.loads(line) for line in (work / "lora/metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in entry for entry in losses) == 3
    for made in ("merged", "int4"):
        assert list((work / made).glob("*.safetensors")), printed
    report = (work / "results/report.md").read_text(encoding="utf-8")
    assert "merged" in report and "int4" in report
    (served,) = (text for source, text in printed.items() if "OpenAI(" in source)
    assert re.search(r"\d+$", served.strip())
    assert next(text for source, text in printed.items() if "terminate" in source).split()[-1] == "0"


def without_words(source):
    """Return the tokens of a cell's code without comments and texts; lines for the shell as they are."""
    shell = [line for line in source.splitlines() if line.startswith(("!", "    --"))]
    code = "\n".join(line for line in source.splitlines() if line not in shell)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    kept = [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.STRING, tokenize.NL)]
    return shell, kept


def test_both_languages_have_the_same_cells():
    english, chinese = (notebook.cells for notebook in NOTEBOOKS.values())
    assert [cell.cell_type for cell in english] == [cell.cell_type for cell in chinese]
    for one, other in zip(english, chinese, strict=True):
        if one.cell_type == "code":
            assert without_words(one.source) == without_words(other.source)
            assert not one.outputs and not other.outputs
        else:
            assert re.findall(r"^#+|`[^`]+`", one.source, re.M) == re.findall(r"^#+|`[^`]+`", other.source, re.M)
