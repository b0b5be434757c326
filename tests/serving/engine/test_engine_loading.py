"""A model folder for inference: an adapter with its base, and a base model, which does not chat."""

import json

import torch
from helpers.commands import exit_code


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
