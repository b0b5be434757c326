"""An adapter on a model on disk: it computes what it does in memory, and is merged as PEFT merges it."""

import json

import pytest
import torch
from helpers import runs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from qwen_vl.adapters import on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.export.merge import merge
from qwen_vl.export.verify import comparison

IDS = torch.arange(20)[None]
TARGETS = {"target_modules": ["c_attn", "lm_head"], "modules_to_save": ["attn_pool"]}
DECODER = ["c_attn", "attn.c_proj", "w1", "w2"]
VARIANTS = {
    "lora": {"target_modules": DECODER},
    "rslora, rank and alpha patterns": {
        "target_modules": DECODER,
        "use_rslora": True,
        "rank_pattern": {"w1": 2, "h.1.attn.c_attn": 8},
        "alpha_pattern": {"w2": 64},
    },
    "dora, layers": {"target_modules": DECODER, "use_dora": True, "layers_to_transform": [1], "layers_pattern": "h"},
    "embedding, convolution, vision": {"target_modules": ["wte", "conv1", "c_fc", "kv_proj", "out_proj", "lm_head"]},
    "dora everywhere": {"target_modules": "all-linear", "use_dora": True},
    "tokens": {"target_modules": DECODER, "trainable_token_indices": {"wte": [1010, 1020, 3]}},
    "whole modules": {"target_modules": "all-linear", "modules_to_save": ["wte", "lm_head", "attn_pool", "ln_f"]},
    "lora bias": {"target_modules": ["c_attn"], "lora_bias": True},
    "all biases": {"target_modules": DECODER, "bias": "all"},
}


@torch.no_grad()
def test_an_adapted_model_on_disk_computes_what_it_does_in_memory(make_adapter, make_checkpoint):
    folder = make_adapter(**TARGETS)
    disk = DiskModel(make_checkpoint())
    on_disk.adapt(disk, Adapter.open(folder))
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
        on_disk.adapt(DiskModel(make_checkpoint()), Adapter.open(folder))


def write_adapter(base, folder, **settings):
    """Let PEFT write an adapter without zero weights, and return its folder."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(loading.load_model(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_streamed_merge_is_that_of_peft_bit_for_bit(make_checkpoint, tmp_path, settings):
    base, adapter = make_checkpoint(), write_adapter(make_checkpoint(), tmp_path / "adapter", **settings)
    merge(adapter, output_dir=tmp_path / "merged", base=base, trust_base=True, max_shard_size="150KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 2
    expected = PeftModel.from_pretrained(loading.load_model(base), adapter).merge_and_unload().state_dict()
    merged = runs.weights(tmp_path / "merged")
    assert runs.equal(merged, expected)
    assert not runs.equal(merged, runs.weights(base))


def test_an_adapter_that_cannot_be_merged_is_refused(make_checkpoint, tmp_path):
    """Check an adapter with a bias whose base layer has none."""
    adapter = write_adapter(make_checkpoint(), tmp_path / "adapter", target_modules=["w1"], lora_bias=True)
    with pytest.raises(ValueError, match=r"h\.0\.mlp\.w1: this adapter cannot be merged: .*no bias"):
        merge(adapter, output_dir=tmp_path / "merged", base=make_checkpoint(), trust_base=True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"init_lora_weights": "pissa"}, "changed the base"), ({"init_lora_weights": "corda"}, "changed its base")],
)
def test_an_adapter_that_changed_its_base_is_refused(make_checkpoint, tmp_path, setting, said):
    """Check adapters as PEFT writes them, whose base is the published one minus the adapter's start."""
    adapter = write_adapter(make_checkpoint(), tmp_path / "adapter", target_modules=["w1"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | setting))
    with pytest.raises(ValueError, match=said):
        on_disk.adapt(DiskModel(make_checkpoint()), Adapter.open(adapter))


def test_a_model_on_disk_computes_what_it_does_in_memory(make_checkpoint):
    folder = make_checkpoint()
    disk = DiskModel(folder)
    model = disk.stream(dtype=torch.float32)
    inputs = comparison.image_prompt(loading.load_tokenizer(folder), model.config)
    for _ in range(2):  # what was read is dropped, and read again
        assert torch.equal(comparison.logits(model, inputs), comparison.logits(loading.load_model(folder), inputs))
    held = {name for name in disk.places if disk.current(name) is not None}
    assert held == set(disk.blocks[None]) and "transformer.h.0.attn.c_attn.weight" not in held
