"""The decoder's layers: norms, rotary positions, attention and feed-forward blocks.

Source: docs/checkpoint_format.md section 3.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_qwen import attend_by_segment, eager_attention
from .configuration_qwen import QWenConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back, then scaled."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return Normalize.apply(hidden, self.eps) * self.weight


class Normalize(torch.autograd.Function):
    """Division of each vector [.., hidden] by its root mean square, in float32, cast back.

    To save memory in training, the backward pass keeps the input and one number per vector, not float32 copies.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, epsilon: float) -> torch.Tensor:
        exact = hidden.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, scale)
        return (exact * scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        hidden, scale = ctx.saved_tensors
        normal, exact = hidden.float() * scale, grad.float()
        along = (exact * normal).mean(-1, keepdim=True)
        return ((exact - normal.mul_(along)) * scale).to(grad.dtype), None


class RotaryTables(NamedTuple):
    """Tables that rotate and scale queries and keys in one forward pass; all layers share them."""

    cos: torch.Tensor  # [batch | 1, 1, length, rotary_dim], float32
    sin: torch.Tensor  # first half negated: the first half of a rotated vector is x cos - y sin
    query_scale: torch.Tensor | None  # [batch | 1, 1, length, 1], float32: log-n scaling; None for 1 everywhere


def ntk_alpha(lengths: torch.Tensor, seq_length: int) -> torch.Tensor:
    """Return the dynamic-NTK factor for sequences of `lengths` tokens: 1 up to seq_length, then 3, 7 ..

    Source: docs/checkpoint_format.md section 3.
    """
    exponent = torch.ceil(torch.log2(lengths.double() / seq_length) + 1)
    return torch.clamp(2**exponent - 1, min=1)


def rotary_tables(
    config: QWenConfig, position_ids: torch.Tensor, alpha: torch.Tensor | None, scale_queries: bool
) -> RotaryTables:
    """Return the tables for `position_ids` [batch | 1, length], with NTK factors `alpha` [batch] and log-n scaling."""
    dim = int(config.kv_channels * config.rotary_pct)
    exponents = torch.arange(0, dim, 2, device=position_ids.device).float() / dim
    if alpha is None:
        inverse = (1.0 / (float(config.rotary_emb_base) ** exponents))[None]
    else:
        bases = config.rotary_emb_base * alpha ** (dim / (dim - 2))  # float64, as the rule is stated
        inverse = 1.0 / (bases.float()[:, None] ** exponents)
    angles = position_ids[..., None].float() * inverse[:, None].to(position_ids.device)
    angles = angles[:, None]  # [batch | 1, 1, length, dim / 2]
    cos, sin = angles.cos(), angles.sin()
    scale = None
    if scale_queries:
        place = (position_ids + 1).double()
        scale = torch.where(place > config.seq_length, place.log() / math.log(config.seq_length), 1.0)
        scale = scale.float()[:, None, :, None]
    return RotaryTables(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), scale)


def is_flash_attention(config: QWenConfig) -> bool:
    """Return whether the attention implementation takes all segments of a packed row in one call."""
    return config._attn_implementation.startswith("flash_attention")


def rotate(states: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
    """Return `states` [batch, heads, length, head_dim] rotated by position, in float32, cast back."""
    dim = rotary.cos.shape[-1]
    if dim < states.shape[-1]:
        return torch.cat([rotate(states[..., :dim], rotary), states[..., dim:]], dim=-1)
    exact = states.float()
    return torch.addcmul(exact * rotary.cos, exact.roll(dim // 2, -1), rotary.sin).to(states.dtype)


class QWenAttention(nn.Module):
    """Causal self-attention; rows of `c_attn` are all queries, then all keys, then all values.

    vLLM reads the source of `forward`. From `self.c_attn(hidden_states).split(..)` it sees how to divide `c_attn` among
    devices, and from the one call of a function of ALL_ATTENTION_FUNCTIONS which module is an attention and its scale.
    """

    is_causal = True

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config.get_text_config(), layer_idx
        self.head_dim, self.dropout = config.kv_channels, config.attn_dropout_prob
        self.width, self.scale = config.kv_channels * config.num_attention_heads, config.kv_channels**-0.5
        self.c_attn = nn.Linear(config.hidden_size, 3 * self.width)
        self.c_proj = nn.Linear(self.width, config.hidden_size, bias=not config.no_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: RotaryTables,
        past_key_values: Cache | None = None,
        segment_lengths: list[int] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.c_attn(hidden_states).split((self.width, self.width, self.width), dim=-1)
        query = rotate(self.heads(query), rotary)  # [batch, heads, length, head_dim]
        key, value = rotate(self.heads(key), rotary), self.heads(value)
        if rotary.query_scale is not None:
            query = query * rotary.query_scale.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        if segment_lengths is None:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
            output, weights = attention(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scale, **kwargs
            )
        else:
            output = attend_by_segment(self, query, key, value, segment_lengths, dropout=dropout, **kwargs)
            weights = None
        output = output.reshape(*hidden_states.shape[:-1], -1)  # vLLM returns [length, width]
        return self.c_proj(output), weights

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """Return states [batch, length, width] as [batch, heads, length, head_dim]. An engine may pass fewer."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class QWenMLP(nn.Module):
    """Gated feed-forward layer: c_proj(w1(x) * silu(w2(x)))."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        hidden_width, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, hidden_width, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, hidden_width, bias=bias)
        self.c_proj = nn.Linear(hidden_width, config.hidden_size, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.c_proj(Gate.apply(self.w1(hidden), self.w2(hidden)))


class Gate(torch.autograd.Function):
    """value * silu(gate). To save memory in training, the backward pass recomputes silu(gate)."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(value, gate)
        return value * F.silu(gate)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gate = ctx.saved_tensors
        return grad * F.silu(gate), torch.ops.aten.silu_backward(grad * value, gate)


class QWenBlock(GradientCheckpointingLayer):
    """One pre-norm decoder block."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: RotaryTables,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attn(
            self.ln_1(hidden), attention_mask, rotary, past_key_values=past_key_values, **kwargs
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), weights
