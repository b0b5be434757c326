"""A model folder for inference: an adapter with its base, and a base model, which does not chat."""

import json
import threading

import pytest
import torch
from helpers.adapters import write_adapter
from helpers.commands import exit_code
from transformers import GenerationConfig

from qwen_vl.serving.engine import Engine, EngineSettings, Sampling

SMALL = EngineSettings(max_running=2, max_batch_tokens=32, page_size=16, kv_tokens=1024, num_images=2)


def test_an_adapter_folder_chats_like_base_plus_adapter(make_checkpoint, tmp_path):
    """Find and check the base. The logits are those of the adapted model."""
    from peft import LoraConfig, get_peft_model

    from qwen_vl.checkpoint import loading
    from qwen_vl.serving.engine import load

    base = make_checkpoint("raw")
    adapted = get_peft_model(
        loading.load_model(base), LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["lm_head"])
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(tmp_path)
    record = {"name": str(base), "fingerprint": loading.fingerprint(base)}
    (tmp_path / "base.json").write_text(json.dumps(record))
    model, tokenizer = load(tmp_path, device="cpu")
    ids = torch.tensor([tokenizer.encode("Hello, who are you?")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert isinstance(next(model.chat_stream(tokenizer, "hi")), str)


def test_a_base_model_says_that_it_does_not_chat(make_checkpoint, capsys):
    assert exit_code(["chat", make_checkpoint("raw"), "--query", "hi"]) == 1
    assert "a base model" in capsys.readouterr().err


def test_an_engine_of_an_adapter_whose_base_has_moved(make_checkpoint, tmp_path, monkeypatch):
    base, folder = make_checkpoint(), tmp_path / "tuned"
    write_adapter(base, folder)
    record = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(record | {"name": str(tmp_path / "gone")}))
    monkeypatch.chdir(folder)
    with pytest.raises((ValueError, OSError), match="gone"):
        Engine.load(".", settings=SMALL, device="cpu")
    engine = Engine.load(".", settings=SMALL, device="cpu", base=str(base), dtype=torch.bfloat16)
    assert [entry.id for entry in engine.model_names] == ["tuned"] and engine.model.dtype == torch.bfloat16


def test_a_start_that_fails_leaves_no_threads(make_checkpoint, tmp_path, monkeypatch):
    base = make_checkpoint()
    engine = Engine.load(
        base, adapters={"a": write_adapter(base, tmp_path / "a")}, settings=SMALL, name="base", device="cpu"
    )

    def fail():
        raise MemoryError("no room for pages")

    monkeypatch.setattr(engine.lanes["a"].manager, "warmup", fail)
    before = threading.active_count()
    with pytest.raises(MemoryError):
        engine.start()
    assert not engine.alive and threading.active_count() == before


def test_the_sampling_of_a_generation_config_is_that_of_generate():
    assert Sampling.of(GenerationConfig()) == Sampling()
    assert Sampling.of(GenerationConfig(temperature=0.5)).temperature == 0
    unset = GenerationConfig._get_default_generation_params()
    expected = Sampling(*(unset[name] for name in ("temperature", "top_p", "top_k")))
    assert Sampling.of(GenerationConfig(do_sample=True)) == expected
    assert Sampling.of(GenerationConfig(do_sample=True, top_p=0.3, top_k=0)) == Sampling(1.0, 0.3, 0)
