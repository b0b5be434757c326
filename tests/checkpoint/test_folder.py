"""An opened model folder: each part is read once, when it is first used."""

import json
import os
from pathlib import Path

import pytest
import torch

from qwen_vl.checkpoint import folder as folder_module
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.export.verify import comparison


def test_a_folder_that_is_open_is_not_read_again(make_checkpoint, monkeypatch):
    read, opened = [], folder_module.Weights
    monkeypatch.setattr(folder_module, "Weights", lambda *args: read.append("weights") or opened(*args))
    load_config = loading.load_config
    monkeypatch.setattr(loading, "load_config", lambda *args: read.append("config") or load_config(*args))
    folder = ModelFolder.open(make_checkpoint())
    assert ModelFolder.open(folder) is folder and read == []
    prompts = [comparison.image_prompt(folder.tokenizer, folder.config)]
    first, again = (comparison.logits_from_disk(folder, prompts, dtype=torch.float32) for _ in range(2))
    assert sorted(read) == ["config", "weights"]
    assert torch.equal(first[0], again[0])
    alone = comparison.logits_from_disk(make_checkpoint(), prompts, dtype=torch.float32)
    assert torch.equal(first[0], alone[0])


def test_a_folder_says_what_it_holds(make_checkpoint, make_int4_checkpoint, tmp_path):
    chat, base, int4 = (ModelFolder.open(path) for path in
                        (make_checkpoint(), make_checkpoint("raw"), make_int4_checkpoint()))  # fmt: skip
    assert [(one.is_chat, one.quantization, one.is_adapter) for one in (chat, base, int4)] == [
        (True, None, False),
        (False, None, False),
        (True, "gptq", False),
    ]
    assert chat.generation_config.max_new_tokens == 32 and chat.fingerprint == loading.fingerprint(make_checkpoint())
    assert os.fspath(chat) == str(chat) == str(make_checkpoint())
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "base.json").write_text(json.dumps({"name": "BASE"}))
    adapter = ModelFolder.open(tmp_path)
    assert adapter.is_adapter
    with pytest.raises(ValueError, match="is an adapter: merge it first"):
        _ = adapter.config


@pytest.mark.parametrize("missing", ["nowhere", "./a/b", "file"])
def test_what_is_no_folder_is_refused_when_it_is_opened(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        ModelFolder.open(missing)
