"""The arithmetic of GPTQ: better than rounding, as good as the library's."""

from importlib import import_module

import pytest
import torch

from qwen_vl.checkpoint import int4_layout, quantization
from qwen_vl.export.quantize import gptq

GROUP = 32


def correlated(rows, columns, seed=0):
    """Return inputs like real ones, whose directions differ greatly in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(rows, columns, generator=generator) @ mixing.T


@pytest.mark.parametrize("desc_act", [False, True])
def test_gptq_keeps_outputs_better_than_rounding(desc_act):
    inputs, weight = correlated(512, 128), torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    hessian = gptq.Hessian(128)
    hessian.add(inputs.view(4, 128, 128))
    codes, zeros, scales, g_idx = gptq.quantize(weight, hessian.mean(), group_size=GROUP, desc_act=desc_act)
    ours = int4_layout.dequantize(int4_layout.pack(codes, zeros, scales, g_idx))
    rounded = int4_layout.dequantize(int4_layout.pack(*int4_layout.round_to_nearest(weight, GROUP)))
    error, plain = (((inputs @ (w - weight).T).norm() / (inputs @ weight.T).norm()).item() for w in (ours, rounded))
    assert error < 0.5 * plain < 0.1
    assert gptq.output_error(weight, ours, hessian.mean()) == pytest.approx(error, rel=1e-3)
    assert g_idx.bincount().tolist() == [GROUP] * 4 and (g_idx.tolist() != sorted(g_idx.tolist())) == desc_act


@pytest.mark.parametrize("desc_act", [False, True])
def test_gptq_is_as_good_as_that_of_the_library(desc_act):
    quantization.quiet_gptqmodel()
    library = import_module("gptqmodel.quantization")
    inputs, weight = correlated(512, 128), torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    layer = torch.nn.Linear(128, 64, bias=False)
    layer.weight.data = weight.clone()
    theirs = library.GPTQ(layer, qcfg=library.QuantizeConfig(bits=4, group_size=GROUP, desc_act=desc_act, sym=True))
    theirs.quantizer.configure(perchannel=True)
    theirs.add_batch(inputs[None], layer(inputs[None]))
    theirs.hf_quantize(percdamp=0.01, group_size=GROUP, actorder=desc_act)
    hessian = gptq.Hessian(128)
    hessian.add(inputs)
    parts = gptq.quantize(weight, hessian.mean(), group_size=GROUP, desc_act=desc_act)
    ours = int4_layout.dequantize(int4_layout.pack(*parts))
    errors = [gptq.output_error(weight, found, hessian.mean()) for found in (ours, layer.weight.data)]
    assert errors[0] < 1.05 * errors[1]


def test_calibration_that_says_nothing_is_an_error():
    """Check the cases in which gptqmodel only logs that it rounds to nearest or changes the damping."""
    inputs = correlated(16, 128)
    with pytest.raises(ValueError, match="no finite inputs"):
        gptq.Hessian(128).mean()
    for value in (float("nan"), float("inf")):
        seen = gptq.Hessian(128)
        seen.add(inputs)
        seen.add(torch.full_like(inputs, value))
        with pytest.raises(ValueError, match="no finite inputs"):
            seen.mean()
    alike = gptq.Hessian(128)
    alike.add(inputs)  # fewer rows than columns
    with pytest.raises(ValueError, match=r"too much alike .*give more calibration data or a larger --damp"):
        gptq.quantize(torch.randn(64, 128), alike.mean(), group_size=GROUP, damp=0)
