"""Fixtures: adapters on the tiny checkpoint."""

import json

import pytest
from peft import LoraConfig, get_peft_model

from qwen_vl.checkpoint import loading


@pytest.fixture
def make_adapter(make_checkpoint, tmp_path):
    """Return a function that writes a new adapter, as training does, with random weights of which none are zero."""

    def make(chat_format="chatml", *, quantization=None, **settings):
        base = make_checkpoint(chat_format)
        settings = {"r": 4, "target_modules": ["c_attn"], "init_lora_weights": False} | settings
        model = get_peft_model(loading.load_model(base), LoraConfig(task_type="CAUSAL_LM", **settings))
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        record = {"name": str(base), "fingerprint": loading.fingerprint(base), "quantization": quantization}
        (folder / "base.json").write_text(json.dumps(record))
        return folder

    return make
