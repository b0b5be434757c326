"""The commands of docs/export.md, run unchanged on a tiny model."""

import re
import shlex

import pytest
import torch
from helpers import runs
from helpers.quantized import write_int4_checkpoint
from peft import LoraConfig, get_peft_model

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint import random_model as tiny
from qwen_vl.checkpoint.files import ADAPTER_BASE
from qwen_vl.cli import main

DOCUMENT = runs.ROOT / "docs" / "export.md"
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return the working folder of the document's commands, with the files that they name."""
    output = tmp_path / "output"
    output.mkdir()
    tiny.build(runs.ROOT / "configs/model/tiny.json", output / "float")
    write_int4_checkpoint(output / "float", output / "float-int4", 128)
    config = LoraConfig(r=4, target_modules=["c_attn", "w1"], task_type="CAUSAL_LM")
    for name, base in (("lora", output / "float"), ("qlora", output / "float-int4")):
        model = get_peft_model(loading.load_model(base), config)
        model.save_pretrained(output / name)
        record = {"name": str(base), "fingerprint": loading.fingerprint(base)}
        (output / name / ADAPTER_BASE).write_text(str(record).replace("'", '"'))
    (output / "full").mkdir()
    (output / "full" / "checkpoint-2").symlink_to(output / "float")
    runs.write_data(tmp_path).rename(tmp_path / "held_out.json")
    runs.write_data(tmp_path).rename(tmp_path / "my_data.json")
    (tmp_path / "images").symlink_to(runs.GOLDEN / "images")
    monkeypatch.chdir(tmp_path)
    return output


def test_the_commands_run_in_their_order(work, capsys):
    assert len(COMMANDS) == 7
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for command in COMMANDS:
            program, *words = shlex.split(command, comments=True)
            assert program == "qwen-vl"
            main.main(words)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "the same within" in said and "| perplexity of" in said and "what the change of base does" in said
    for made in ("exported", "merged", "int4", "nf4", "merged-float", "merged-dequantized"):
        assert "tongyi-qianwen" in (work / made / "README.md").read_text(encoding="utf-8")
    assert "## Quality before and after" in (work / "int4" / "README.md").read_text(encoding="utf-8")
