"""Quantized checkpoints into memory: the published Int4 layout bit by bit, and what bitsandbytes makes of floats."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import quantized, runs
from safetensors.torch import save_file

from qwen_vl.checkpoint import loading, quantization
from qwen_vl.model import QWenConfig, QWenLMHeadModel

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def int4(make_int4_checkpoint, tmp_path):
    """Return a copy of the tiny Int4 checkpoint that a test may change."""
    return Path(shutil.copytree(make_int4_checkpoint(), tmp_path / "int4"))


def float_twin(checkpoint, weights_of):
    """Return the float32 model of `checkpoint` whose decoder linears are `weights_of(weight)`."""
    model = loading.load_model(checkpoint)
    for path, module in model.transformer.h.named_modules():
        if path.endswith(quantized.LINEARS):
            module.weight.data = weights_of(module.weight.data)
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_weights_are_what_the_layout_says_bit_by_bit(int4):
    """Check every code, with zero points that differ by group and output and are stored minus one."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 192), generator=generator)
    zeros = torch.randint(1, 16, (2, 192), generator=generator)
    scales = torch.rand(2, 192, generator=generator).half()
    g_idx = torch.arange(64) // quantized.GROUP_SIZE
    tensors, stem = runs.weights(int4), "transformer.h.1.attn.c_attn"
    tensors |= {f"{stem}.{part}": value for part, value in quantized.pack(codes, zeros, scales, g_idx).items()}
    save_file(tensors, int4 / "model.safetensors", metadata={"format": "pt"})
    layer = loading.load_model(int4).transformer.h[1].attn.c_attn
    expected = quantized.dequantized(codes, zeros, scales, g_idx).half()
    assert torch.equal(layer.dequantize_weight().T.half(), expected)
    inputs = torch.eye(64)
    with torch.no_grad():
        assert torch.equal(layer(inputs), expected.float().T + layer.bias.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int4_computes_what_its_dequantized_twin_does(make_checkpoint, make_int4_checkpoint, dtype):
    twin = float_twin(
        make_checkpoint(), lambda weight: quantized.dequantized(*quantized.rounded(weight)).half().float()
    )
    model = loading.load_model(make_int4_checkpoint(), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not hasattr(model.transformer.visual.proj, "qweight") and isinstance(model.lm_head, torch.nn.Linear)
    expected = logits(twin.to(dtype)).float()
    tolerance = {torch.float32: 3e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]  # the rest is stored in fp16
    assert (logits(model).float() - expected).abs().max() < tolerance


def test_a_precision_leaves_packed_weights_as_they_are(make_int4_checkpoint):
    """Check that the arguments in the original README choose the dtype of all that is not packed."""
    stored = runs.weights(make_int4_checkpoint())["transformer.h.0.attn.c_attn.qweight"]
    for arguments, dtype in (({}, torch.float16), ({"fp16": True}, torch.float16), ({"bf16": True}, torch.bfloat16)):
        model = QWenLMHeadModel.from_pretrained(make_int4_checkpoint(), device_map="cpu", **arguments)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.transformer.h[0].attn.c_attn.qweight.shape == stored.shape and logits(model).isfinite().all()


def test_a_full_size_int4_model_has_the_published_tensors():
    """Check on the meta device: 160 of 853 float tensors are four tensors and a bias each in the published file."""
    config = QWenConfig(quantization_config=quantized.QUANTIZATION_CONFIG | {"group_size": 128})
    with torch.device("meta"):
        model = quantization.replace_linears(QWenLMHeadModel(config), config)
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = {
        "attn.c_attn.bias": [12288],
        "attn.c_attn.g_idx": [4096],
        "attn.c_attn.qweight": [512, 12288],
        "attn.c_attn.qzeros": [32, 1536],
        "attn.c_attn.scales": [32, 12288],
        "attn.c_proj.g_idx": [4096],
        "attn.c_proj.qweight": [512, 4096],
        "attn.c_proj.qzeros": [32, 512],
        "attn.c_proj.scales": [32, 4096],
        "ln_1.weight": [4096],
        "ln_2.weight": [4096],
        "mlp.c_proj.g_idx": [11008],
        "mlp.c_proj.qweight": [1376, 4096],
        "mlp.c_proj.qzeros": [86, 512],
        "mlp.c_proj.scales": [86, 4096],
    }
    for name in ("w1", "w2"):
        layer |= {f"mlp.{name}.g_idx": [4096], f"mlp.{name}.qweight": [512, 11008]}
        layer |= {f"mlp.{name}.qzeros": [32, 1376], f"mlp.{name}.scales": [32, 11008]}
    for i in range(32):
        assert {
            n.removeprefix(f"transformer.h.{i}."): s for n, s in found.items() if f"transformer.h.{i}." in n
        } == layer
    published, zero_biases = 1461, 4 * 32
    assert len(found) == published - zero_biases


def test_left_over_biases_must_be_zero(int4):
    tensors = runs.weights(int4)
    assert not tensors["transformer.h.0.mlp.w1.bias"].any()
    tensors["transformer.h.0.mlp.w1.bias"][3] = 1
    save_file(tensors, int4 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 left over \(transformer.h.0.mlp.w1.bias"):
        loading.load_model(int4)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("transformer.h.0.mlp.w1.scales"), r"1 missing \(transformer.h.0.mlp.w1.scales"),
        (lambda tensors: tensors.update({"transformer.h.0.mlp.w1.weight": torch.zeros(64, 64)}), "1 left over"),
        (lambda tensors: tensors.update({"transformer.h.0.mlp.w1.qzeros": torch.zeros(1, 8).int()}), "another shape"),
    ],
    ids=["missing", "left over", "other group size"],
)
def test_a_damaged_int4_checkpoint_is_refused(int4, damage, said):
    tensors = runs.weights(int4)
    damage(tensors)
    save_file(tensors, int4 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=said):
        loading.load_model(int4)


@pytest.mark.parametrize(
    "changes", [{"quant_method": "awq"}, {"bits": 5}, {"quant_method": "bitsandbytes"}], ids=lambda c: str(*c.values())
)
def test_a_quantization_that_cannot_be_read_is_refused_by_its_config(int4, changes):
    config = json.loads((int4 / "config.json").read_text())
    config["quantization_config"] |= changes
    (int4 / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="which cannot be read here; use a GPTQ checkpoint"):
        loading.load_config(int4)


def test_missing_packages_are_named(make_int4_checkpoint, make_checkpoint, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'need optimum and gptqmodel: pip install "qwen-vl\[quant\]"'):
        loading.load_model(make_int4_checkpoint())
    with pytest.raises(ImportError, match=r'need bitsandbytes: pip install "qwen-vl\[quant\]"'):
        loading.load_model(make_checkpoint(), quantization="nf4")


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 0.1), ("int8", 0.05)])
def test_float_weights_are_quantized_while_loading(make_checkpoint, kind, tolerance, tmp_path):
    """Check that only the decoder's linears are, and that they stay equal when saved and loaded."""
    plain = loading.load_model(make_checkpoint())
    model = loading.load_model(make_checkpoint(), quantization=kind)
    small = {path for path, module in model.named_modules() if type(module).__name__.startswith("Linear") and
             type(module) is not torch.nn.Linear}  # fmt: skip
    assert small == {f"transformer.h.{i}.{name}" for i in (0, 1) for name in quantized.LINEARS}
    kept, origin = dict(model.named_parameters()), dict(plain.named_parameters())
    assert all(torch.equal(kept[name], origin[name]) for name in origin if name.rpartition(".")[0] not in small)
    difference = (logits(model) - logits(plain)).abs().max()
    assert 0 < difference < tolerance
    model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path)
    assert quantization.kind_of(again.config) == kind
    assert torch.equal(logits(again), logits(model))


def test_stored_and_requested_quantization_must_agree(make_int4_checkpoint):
    with pytest.raises(ValueError, match=r"is quantized already \(GPTQ with 4 bits\)"):
        loading.load_model(make_int4_checkpoint(), quantization="nf4")
