"""Int4 linears in the layout that AutoGPTQ wrote and that is published: codes of 4 bits, 8 in a word.

Of a weight [out, in] in groups of inputs a file holds `qweight` int32 [in / 8, out], `qzeros` int32 [groups, out / 8],
`scales` [groups, out] and `g_idx` int32 [in], the group of each input. The first code lies in the lowest bits.
weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i]. Version 1 of the layout, which is the
published one, stores each zero point minus one; version 2, as optimum writes it, stores it as it is.
"""

from collections.abc import Sequence

import torch

BITS = 4
ZERO = 2 ** (BITS - 1)  # the code of zero where positive and negative values have as many codes
CODES_PER_WORD = 32 // BITS
PARTS = ("qweight", "qzeros", "scales", "g_idx")
SUFFIX = ".qweight"  # of the names that stand for a whole linear

Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # codes, zeros, scales, g_idx, as `pack` has them


def pack(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return {part: tensor} in version 1 of codes [in, out], zeros and scales [groups, out] and g_idx [in]."""
    return {
        "qweight": to_words(codes.T).T.contiguous(),
        "qzeros": to_words(zeros - 1),
        "scales": scales.half(),
        "g_idx": g_idx.int(),
    }


def dequantize(parts: dict[str, torch.Tensor], *, version: int = 1) -> torch.Tensor:
    """Return the weight [out, in] in float32 of a linear's four parts, rounded to the scales' dtype as kernels do."""
    codes = from_words(parts["qweight"].T)  # [out, in]
    zeros = from_words(parts["qzeros"]) + (version == 1)  # [groups, out]
    groups = parts["g_idx"].long()
    scales = parts["scales"].float().T  # [out, groups]
    return (codes - zeros.T[:, groups]).float().mul_(scales[:, groups]).to(parts["scales"].dtype).float()


def to_words(codes: torch.Tensor) -> torch.Tensor:
    """Return int32 [rows, n / 8] of codes [rows, n]."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // CODES_PER_WORD, dtype=torch.int32, device=codes.device)
    for place in range(CODES_PER_WORD):
        words |= (codes[:, place::CODES_PER_WORD].int() & (2**BITS - 1)) << (BITS * place)  # the last reaches the sign
    return words


def from_words(words: torch.Tensor) -> torch.Tensor:
    """Return codes [rows, n] in int8 of int32 [rows, n / 8]."""
    codes = torch.empty(words.shape[0], words.shape[1] * CODES_PER_WORD, dtype=torch.int8, device=words.device)
    for place in range(CODES_PER_WORD):
        codes[:, place::CODES_PER_WORD] = (words >> (BITS * place)) & (2**BITS - 1)
    return codes


def round_to_nearest(weight: torch.Tensor, group_size: int) -> Codes:
    """Return (codes, zeros, scales, g_idx) as `pack` takes them: symmetric, each value rounded alone, uncalibrated.

    Raise ValueError if the inputs of a weight [out, in] do not fall into whole groups.
    """
    scales = symmetric_scales(grouped(weight, group_size))  # [out, groups]
    zeros = torch.full_like(scales, ZERO)
    g_idx = torch.arange(weight.shape[1], device=weight.device) // group_size
    codes = encode(weight.float(), scales[:, g_idx], zeros[:, g_idx])
    return codes.T, zeros.T.int(), scales.T, g_idx


def grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return a weight [out, in] as float32 [out, groups, group_size]; raise ValueError if groups are not whole."""
    check_fits(weight.shape, group_size)
    return weight.float().unflatten(1, (-1, group_size))


def check_fits(shape: Sequence[int], group_size: int) -> None:
    """Raise ValueError if a weight of shape [out, in] cannot be packed with this group size."""
    out, inputs = shape
    if inputs % group_size or inputs % CODES_PER_WORD or out % CODES_PER_WORD:
        raise ValueError(
            f"a linear of {inputs} inputs and {out} outputs has no groups of {group_size}: give a --group_size that "
            f"divides {inputs}; both sides must be multiples of {CODES_PER_WORD}"
        )


def symmetric_scales(groups: torch.Tensor) -> torch.Tensor:
    """Return scales [...] of values [..., group]: the largest of each group is the largest code or its negative."""
    scales = groups.abs().amax(-1) * 2 / (2**BITS - 1)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return scales.half().float()  # as they will be stored, so that the codes are chosen for these very scales


def encode(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Return codes in int32 of values, all of one shape."""
    return (torch.round(values / scales) + zeros).clamp(0, 2**BITS - 1).int()
