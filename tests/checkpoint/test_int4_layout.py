"""The Int4 layout: words of 8 codes, and the errors of rounding."""

import pytest
import torch

from qwen_vl.checkpoint import int4_layout


def test_words_hold_8_codes_from_the_lowest_bits_on():
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15], [0, 0, 0, 0, 0, 0, 0, 8]])
    words = int4_layout.to_words(codes)
    assert words.dtype == torch.int32 and words.tolist() == [[0xF7654321 - 2**32], [-(2**31)]]
    codes = torch.randint(0, 16, (5, 48), generator=torch.Generator().manual_seed(0))
    assert torch.equal(int4_layout.from_words(int4_layout.to_words(codes)).long(), codes)


@pytest.mark.parametrize("version", [1, 2])
def test_rounding_is_off_by_half_a_step_at_most(version):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    codes, zeros, scales, g_idx = int4_layout.round_to_nearest(weight, 32)
    parts = int4_layout.pack(codes, zeros + (version == 2), scales, g_idx)
    assert {part: tuple(tensor.shape) for part, tensor in parts.items()} == {
        "qweight": (8, 16), "qzeros": (2, 2), "scales": (2, 16), "g_idx": (64,),
    }  # fmt: skip
    error = (int4_layout.dequantize(parts, version=version) - weight).abs()
    step = scales.T[:, g_idx]  # [out, in]
    # float16 rounds the result once more.
    assert (error <= 0.51 * step + 1e-3).all() and not error[3].any()
    assert error.mean() > 0.1 * step.mean()


@pytest.mark.parametrize(("shape", "group_size"), [((16, 60), 32), ((16, 36), 12), ((12, 64), 32)])
def test_what_has_no_whole_groups_or_words_is_refused(shape, group_size):
    with pytest.raises(ValueError, match=f"a linear of {shape[1]} inputs and {shape[0]} outputs has no groups of"):
        int4_layout.round_to_nearest(torch.randn(shape), group_size)
