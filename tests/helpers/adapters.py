"""A small adapter folder."""

import json

import torch
from peft import LoraConfig, get_peft_model

from qwen_vl.checkpoint import loading


def write_adapter(base, folder, std=0.5):
    """Write a LoRA adapter of the model folder `base` that changes what the model says, and return its folder."""
    adapted = get_peft_model(loading.load_model(base), LoraConfig(r=2, target_modules=["c_attn"]))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps({"name": str(base), "fingerprint": loading.fingerprint(base)}))
    return folder
