"""The model compared with the recorded original. Each decided difference is named at its case.

They are listed in docs/checkpoint_format.md section 8.
"""

import pytest
import torch
from helpers.recorded import apart, case_names, check_outputs, inputs_of

from qwen_vl.model import QWenConfig, QWenLMHeadModel


def test_published_configuration_has_exactly_the_published_tensors():
    with torch.device("meta"):
        model = QWenLMHeadModel(QWenConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 853
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_656_935_168
    assert shapes["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (4096, 11008)
    assert shapes["transformer.visual.conv1.weight"] == (1664, 3, 14, 14)
    assert shapes["transformer.visual.positional_embedding"] == (256, 1664)
    assert shapes["transformer.visual.transformer.resblocks.47.attn.in_proj.weight"] == (4992, 1664)
    assert shapes["transformer.visual.transformer.resblocks.0.mlp.c_fc.weight"] == (8192, 1664)
    assert shapes["transformer.visual.attn_pool.kv_proj.weight"] == (4096, 1664)
    assert shapes["transformer.visual.attn_pool.attn.in_proj_weight"] == (12288, 4096)
    assert "transformer.visual.conv1.bias" not in shapes and "transformer.h.0.attn.c_proj.bias" not in shapes


def test_logits(golden, golden_model, in_golden_dir):
    file, subset = golden("logits_tiny.npz"), golden("model_facts.json")["vocab_subset"]
    cases = [case for case in case_names(file) if f"{case}/argmax" in file.files and not case.startswith("bf16")]
    assert cases
    for case in cases:
        check_outputs(golden_model, file, case, subset)


def test_bfloat16_stays_near(golden, golden_model):
    file = golden("logits_tiny.npz")
    if "bf16_text/hidden" not in file.files:
        pytest.skip("no bfloat16 case in this golden set")
    config = golden_model.config
    model = QWenLMHeadModel(config)
    model.load_state_dict(golden_model.state_dict())
    with torch.no_grad():
        output = model.to(torch.bfloat16).eval()(**inputs_of(file, "bf16_text"), output_hidden_states=True)
    assert apart(output.hidden_states[-1].float(), file["bf16_text/hidden"]) < 0.02


@pytest.mark.parametrize("mode", ["from_config", "meta"])
def test_random_weights_are_finite_and_tables_are_not_random(mode, tmp_path):
    visual = {"heads": 2, "image_size": 32, "image_start_id": 100, "layers": 1, "mlp_ratio": 2.0}
    visual |= {"output_dim": 32, "patch_size": 8, "width": 16, "n_queries": 4}
    config = QWenConfig(
        vocab_size=110, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, kv_channels=16,
        intermediate_size=64, visual=visual,
    )  # fmt: skip
    model = QWenLMHeadModel(config)
    if mode == "meta":  # built as from_pretrained builds it
        model.save_pretrained(tmp_path)
        model = QWenLMHeadModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 100, *[102] * 4, 101, 5]])
    assert model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32)).logits.isfinite().all()
    table = model.transformer.visual.attn_pool.pos_embed
    assert table.shape == (4, 32) and table[0, :8].abs().sum() == 0 and table[0, 8:16].tolist() == [1.0] * 8
    model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32), labels=ids).loss.backward()
    assert table.grad is None and model.transformer.visual.attn_pool.query.grad is not None
