"""An adapter on a model whose weights stay on disk."""

import pytest
import torch
from helpers import runs
from peft import PeftModel
from safetensors.torch import save_file

from qwen_vl.adapters import on_disk
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.disk_model import DiskModel

IDS = torch.arange(20)[None]
TARGETS = {"target_modules": ["c_attn", "lm_head"], "modules_to_save": ["attn_pool"]}


@torch.no_grad()
def test_an_adapted_model_on_disk_computes_what_it_does_in_memory(make_adapter, make_checkpoint):
    folder = make_adapter(**TARGETS)
    disk = DiskModel(make_checkpoint())
    on_disk.adapt(disk, folder)
    expected = PeftModel.from_pretrained(loading.load_model(make_checkpoint()), folder).eval()(IDS).logits
    assert torch.equal(disk.stream(dtype=torch.float32)(IDS).logits, expected)
    head = on_disk.adapted_layer(disk.model, "lm_head.weight")
    assert head.path == "lm_head" and head.module is disk.model.base_model.model.lm_head
    assert on_disk.adapted_layer(disk.model, "transformer.h.1.attn.c_attn.bias").path == "transformer.h.1.attn.c_attn"
    assert (
        on_disk.adapted_layer(disk.model, "transformer.visual.attn_pool.query").path == "transformer.visual.attn_pool"
    )
    assert on_disk.adapted_layer(disk.model, "transformer.h.1.mlp.w1.weight") is None
    assert on_disk.adapted_layer(DiskModel(make_checkpoint()).model, "lm_head.weight") is None


def test_an_incomplete_adapter_is_refused(make_adapter, make_checkpoint):
    folder = make_adapter()
    tensors = runs.weights(folder)
    lost = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"{folder}: the adapter is damaged"):
        on_disk.adapt(DiskModel(make_checkpoint()), folder)
