"""The memory model: counts, compared with the real model and with autograd."""

import pytest
import torch

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.families import v1_costs
from qwen_vl.model import QWenConfig
from qwen_vl.model.decoder_qwen import QWenBlock, rotary_tables
from qwen_vl.training import tuning
from qwen_vl.training.plan import memory_model

PUBLISHED_PARAMETERS = 9_656_935_168


def test_weights_are_those_of_the_real_model(make_checkpoint):
    """Compare the counts on the meta device with the model that a run prepares, part by part."""
    config = loading.load_config(make_checkpoint())
    for method in ("full", "lora"):
        trained = memory_model.Trained(base_model=True)
        found = memory_model.weigh(config, memory_model.Setup(method=method, half=False), trained)
        model = loading.load_model(make_checkpoint())
        if method == "full":
            model = tuning.freeze_for_full(model, fix_vit=True)
        else:
            model = build.add_adapters(model, LoraOptions(modules_to_save=["wte", "lm_head"]))
        trained = [p for p in model.parameters() if p.requires_grad]
        assert found.parameters == sum(p.numel() for p in trained)
        assert found.trained == sum(p.nbytes for p in trained)
        assert found.frozen == sum(p.nbytes for p in model.parameters()) - found.trained
    published = memory_model.weigh(QWenConfig(), memory_model.Setup(method="lora"))
    assert published.frozen == 2 * PUBLISHED_PARAMETERS and published.adapters == 112_197_632
    # The Int4 checkpoint as published: 9,731,786,240 bytes, one of which counts 32 blocks' packed linears.
    assert memory_model.weigh(QWenConfig(), memory_model.Setup(method="qlora")).frozen == 9_731_786_240


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_what_is_counted(dtype):
    """Compare with the bytes that autograd keeps of a block in full training, without weights and position tables."""
    visual = QWenConfig().visual | {"output_dim": 256}
    config = QWenConfig(hidden_size=256, num_attention_heads=4, kv_channels=64, intermediate_size=1024, visual=visual)
    config._attn_implementation = "sdpa"
    block, length = QWenBlock(config, 0).to(dtype), 512
    rotary = rotary_tables(config, torch.arange(length)[None], alpha=None, scale_queries=False)
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), rotary.cos, rotary.sin)}
    hidden, kept = torch.randn(1, length, 256, dtype=dtype, requires_grad=True), {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held here, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(hidden, None, rotary)
    found = sum(size for place, (size, _) in kept.items() if place not in shared)
    setup = memory_model.Setup(method="full", length=length, half=dtype != torch.float32, on_cpu=True)
    counted = v1_costs.block_bytes(config, memory_model.block_run(setup, dtype.itemsize, dtype.itemsize))
    assert found == pytest.approx(counted, rel=0.05)


def test_the_loss_does_not_grow_with_positions_without_a_target():
    config, setup = QWenConfig(), memory_model.Setup(targets=0.01)
    assert memory_model.loss_bytes(config, setup._replace(length=8192)) <= 1.5 * memory_model.CHUNK_BYTES


def test_answers_during_training_keep_the_keys_and_values_of_a_real_cache(make_checkpoint):
    model = loading.load_model(make_checkpoint(), dtype=torch.float32)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    setup = memory_model.Setup(half=False, on_cpu=True, length=5, answers=3, new_tokens=2)
    weights = memory_model.weigh(model.config, setup)
    parts = memory_model.phases(model.config, weights, setup)["answering of held-out questions"]
    assert parts[memory_model.KEYS] == real and parts["gradients"] == 0 < parts["answering"]
    assert "answering" not in str(memory_model.phases(model.config, weights, setup._replace(answers=0)))
    per_token = v1_costs.cache_bytes(QWenConfig(), 2)
    assert per_token == 512 * 1024  # the 0.5 MB of docs/evaluation.md
