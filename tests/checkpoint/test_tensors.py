"""The tensors of a checkpoint by name, as floats, whatever its files hold."""

import json

import pytest
import torch
from helpers import quantized, runs

from qwen_vl.checkpoint import fit
from qwen_vl.checkpoint.tensors import Weights


@pytest.mark.parametrize("as_bin", [False, True], ids=["safetensors", "bin"])
def test_float_tensors_are_those_of_the_files(make_checkpoint, tmp_path, as_bin):
    tensors = runs.weights(make_checkpoint())
    if as_bin:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    weights = Weights(tmp_path if as_bin else make_checkpoint())
    assert not weights.is_quantized and weights.names() == sorted(tensors)
    assert {name: weights.shape(name) for name in tensors} == fit.shapes(tensors.items())
    assert {weights.dtype(name) for name in tensors} == {torch.float32}
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in tensors.items())


def test_packed_linears_appear_as_their_weights(make_checkpoint, make_int4_checkpoint):
    floats, weights = runs.weights(make_checkpoint()), Weights(make_int4_checkpoint())
    assert weights.is_quantized and floats.keys() <= set(weights.names())
    biases = set(weights.names()) - floats.keys()
    assert biases and all(name.endswith(".bias") and not weights.read(name).any() for name in biases)
    stored = runs.weights(make_int4_checkpoint()).keys()
    packed = [name for name in floats if f"{name.removesuffix('.weight')}.qweight" in stored]
    assert len(packed) == 2 * len(quantized.LINEARS)
    for name, tensor in floats.items():
        found = weights.read(name)
        expected = quantized.dequantized(*quantized.rounded(tensor)).half() if name in packed else tensor.half()
        assert torch.equal(found.half(), expected) and weights.shape(name) == list(tensor.shape), name
        assert weights.dtype(name) == torch.float16 and found.is_floating_point()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 8}, "quantized as gptq with 8 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized as bitsandbytes with 8 bits"),
        ({"quant_method": "awq", "bits": 4}, "quantized as awq with 4 bits"),
    ],
)
def test_other_kinds_of_quantization_are_refused(tmp_path, settings, said):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(ValueError, match=said):
        Weights(tmp_path)
