"""The decoder's attention, compared with the recorded original; packed rows, sample by sample."""

import pytest
import torch
from helpers.recorded import RELATIVE, apart, inputs_of
from torch import nn

from qwen_vl.model import QWenConfig
from qwen_vl.model.attention_qwen import attend_by_segment


def test_eager_attention_gives_every_layer(golden, golden_model, in_golden_dir):
    file = golden("logits_tiny.npz")
    golden_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = golden_model(**inputs_of(file, "text_layers"), output_hidden_states=True, output_attentions=True)
    finally:
        golden_model.set_attn_implementation("sdpa")
    assert apart(torch.stack(output.hidden_states), file["text_layers/hidden_all"]) < RELATIVE
    assert apart(torch.stack(output.attentions), file["text_layers/attn_all"]) < RELATIVE
    keys = torch.stack([layer.keys.transpose(1, 2) for layer in output.past_key_values.layers])
    assert apart(keys, file["text_layers/kv_k"]) < RELATIVE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_segments_attend_to_themselves_alone(implementation):
    torch.manual_seed(0)
    module = nn.Module().eval()
    module.config, module.is_causal = QWenConfig(attn_implementation=implementation), True
    lengths, (query, key, value) = [3, 1, 4], torch.randn(3, 1, 2, 8, 4).unbind()
    packed = attend_by_segment(module, query, key, value, lengths)
    weights = (query @ key.transpose(2, 3)) / 4**0.5
    allowed = torch.block_diag(*(torch.ones(n, n) for n in lengths)).tril().bool()
    expected = weights.masked_fill(~allowed, -torch.inf).softmax(-1) @ value
    torch.testing.assert_close(packed, expected.transpose(1, 2))
