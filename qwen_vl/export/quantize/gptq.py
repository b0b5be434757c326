"""GPTQ: 4-bit weights that preserve the outputs of a layer for real inputs (Frantar et al. 2022, arXiv 2210.17323).

gptqmodel has the same arithmetic in its class `GPTQ`, and a test compares the two. This file does not use that class,
because as of 7.6.0 it hides bad calibration data. If the data is not finite, absent or too much alike, it rounds a
layer to nearest or raises the damping; this file raises an error. Importing gptqmodel also starts threads, patches
transformers and changes HF_HOME and other environment variables. On a GPU it compiles a CUDA extension at the first
layer.
"""

import torch

from qwen_vl.checkpoint import int4_layout

BLOCK = 128  # columns after which the error is spread over all columns that follow


class Hessian:
    """The second moments of a layer's inputs, [in, in] in float32: twice their mean outer product."""

    def __init__(self, inputs: int, device: str | torch.device = "cpu") -> None:
        """Start from no inputs. inputs: the number of input features."""
        self.sum = torch.zeros(inputs, inputs, device=device)
        self.count = 0

    def add(self, activations: torch.Tensor) -> None:
        """Add the inputs [.., in] of one forward pass."""
        rows = activations.detach().reshape(-1, activations.shape[-1]).float()
        self.sum.addmm_(rows.T, rows, alpha=2)
        self.count += rows.shape[0]

    def mean(self) -> torch.Tensor:
        """Return the matrix. Raise ValueError if the layer had no inputs, or inputs that are not finite."""
        if not self.count or not torch.isfinite(self.sum).all():
            raise ValueError("the calibration data gives this layer no finite inputs; check the model and the data")
        return self.sum / self.count


def quantize(
    weight: torch.Tensor, hessian: torch.Tensor, *, group_size: int, desc_act: bool = False, damp: float = 0.01
) -> int4_layout.Codes:
    """Return (codes [in, out], zeros and scales [groups, out], g_idx [in]) of a weight [out, in], for packing.

    Columns are rounded one after another. The error of each in the layer's output is subtracted from the columns that
    follow. desc_act: begin with the columns of the largest inputs, and form groups in that order. damp: the share of
    the mean of the diagonal that is added to the diagonal.
    Raise ValueError if the inputs do not divide into groups, or if `hessian` [in, in] cannot be inverted.
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


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of a Hessian, which is damped in place.

    Raise ValueError if it cannot be inverted.
    """
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"the inputs of a layer are too much alike ({error}); give more calibration data or a larger --damp"
        ) from error


def spread_rounding(weight: torch.Tensor, factor: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (codes [out, in], scales [out, groups]) of a weight, which is changed in place."""
    out, inputs = weight.shape
    codes = torch.empty(out, inputs, dtype=torch.int32, device=weight.device)
    scales = torch.empty(out, inputs // group_size, device=weight.device)
    zero = torch.tensor(int4_layout.ZERO, device=weight.device)
    width = group_size * max(
        1, BLOCK // group_size
    )  # whole groups, so that the scales of a group include every earlier error
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


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the error of a layer's output by rounding: root mean square error over root mean square."""
    apart = weight - quantized
    power = ((apart @ hessian) * apart).sum(), ((weight @ hessian) * weight).sum()
    return (power[0] / power[1]).clamp(min=0).sqrt().item()
