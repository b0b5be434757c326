"""Adapter folders hold everything that trains."""

import pytest
from peft import get_peft_model_state_dict

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading

WAYS = {
    "adapters": {},
    "all biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "tower whole, all biases": {"bias": "all", "modules_to_save": ["visual"]},
    "new tokens, all biases": {"bias": "all", "new_tokens": (1001,)},
    "magnitudes": {"use_dora": True, "targets": ["c_attn", "in_proj"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_everything_that_trains_is_saved(make_checkpoint, way):
    options = LoraOptions(r=2, alpha=4, dropout=0.0, targets=["c_attn", "w1"])._replace(**WAYS[way])
    model = build.add_adapters(loading.load_model(make_checkpoint()), options)
    saved = {tensor.data_ptr() for tensor in get_peft_model_state_dict(model).values()}
    trained = {name: one.data_ptr() for name, one in model.named_parameters() if one.requires_grad}
    assert trained and not [name for name, place in trained.items() if place not in saved]
