"""GPTQ: 4-bit weights that keep what a layer does to real inputs (Frantar et al. 2022, arXiv 2210.17323).

gptqmodel has the same arithmetic in its class `GPTQ`, and a test compares the two. It is not used here because, as of
7.6.0, it rounds a layer to nearest, or raises the damping, where this file raises an error: after calibration data that
are not finite, are absent or are too much alike. Importing it also starts threads, patches transformers and changes
HF_HOME and other environment variables, and on a GPU it compiles a CUDA extension at the first layer.
"""

import torch

from qwen_vl.checkpoint import int4_layout

BLOCK = 128  # columns after which the error is spread over all that follow


class Hessian:
    """The second moments of a layer's inputs, [in, in] in float32: twice their mean outer product."""

    def __init__(self, inputs, device="cpu"):
        self.sum = torch.zeros(inputs, inputs, device=device)
        self.count = 0

    def add(self, activations):
        """Take in the inputs [.., in] of one forward pass."""
        rows = activations.detach().reshape(-1, activations.shape[-1]).float()
        self.sum.addmm_(rows.T, rows, alpha=2)
        self.count += rows.shape[0]

    def mean(self):
        """The matrix; ValueError where the layer has seen nothing, or something that is not finite."""
        if not self.count or not torch.isfinite(self.sum).all():
            raise ValueError("the calibration data gives this layer no finite inputs; check the model and the data")
        return self.sum / self.count


def quantize(weight, hessian, *, group_size, desc_act=False, damp=0.01):
    """(codes [in, out], zeros and scales [groups, out], g_idx [in]) of a weight [out, in], for `packing.pack`.

    Columns are rounded one after another, each time the error that this makes in the layer's output is taken from the
    columns that are still to come. desc_act: those with the largest inputs first, groups in that order. damp: share of
    the mean of the diagonal that is added to it.
    Raises ValueError where the inputs do not fall into groups, or where `hessian` [in, in] cannot be inverted.
    """
    int4_layout.check_fits(weight.shape, group_size)
    weight, hessian = weight.float().clone(), hessian.clone()
    inputs = weight.shape[1]
    diagonal = hessian.diagonal()
    unused = diagonal == 0
    diagonal[unused] = 1
    weight[:, unused] = 0
    order = diagonal.argsort(descending=True) if desc_act else torch.arange(inputs, device=weight.device)
    weight, factor = weight[:, order], inverse_factor(hessian[order][:, order], damp)
    place = order.argsort()  # of each column of the original weight
    codes, scales = spread_rounding(weight, factor, group_size)
    g_idx = (torch.arange(inputs, device=weight.device) // group_size)[place]
    zeros = torch.full_like(scales, int4_layout.ZERO, dtype=torch.int32)
    return codes[:, place].T, zeros.T, scales.T, g_idx


def inverse_factor(hessian, damp):
    """The upper Cholesky factor of the inverse of a damped Hessian."""
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"the inputs of a layer are too much alike ({error}); give more calibration data or a larger --damp"
        ) from error


def spread_rounding(weight, factor, group_size):
    """(codes [out, in], scales [out, groups]) of a weight, which is changed on the way."""
    out, inputs = weight.shape
    codes = torch.empty(out, inputs, dtype=torch.int32, device=weight.device)
    scales = torch.empty(out, inputs // group_size, device=weight.device)
    zero = torch.tensor(int4_layout.ZERO, device=weight.device)
    width = group_size * max(1, BLOCK // group_size)  # whole groups, so that a group's scales see every earlier error
    for start in range(0, inputs, width):
        end = min(start + width, inputs)
        errors = torch.empty(out, end - start, device=weight.device)
        for column in range(start, end):
            if column % group_size == 0:
                group = weight[:, column : column + group_size]
                scales[:, column // group_size] = int4_layout.symmetric_scales(group)
            scale, value = scales[:, column // group_size], weight[:, column]
            codes[:, column] = int4_layout.encode(value, scale, zero)
            error = (value - scale * (codes[:, column] - zero)) / factor[column, column]
            weight[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    return codes, scales


def output_error(weight, quantized, hessian):
    """How much of a layer's output the rounding changes: root mean square error over root mean square."""
    apart = weight - quantized
    power = ((apart @ hessian) * apart).sum(), ((weight @ hessian) * weight).sum()
    return (power[0] / power[1]).clamp(min=0).sqrt().item()
