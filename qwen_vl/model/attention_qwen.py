"""Attention: kernels behind transformers' attention interface; a packed row is computed sample by sample."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [batch, length, heads, head_dim] of softmax attention, and its weights.

    query, key, value: [batch, heads, length, head_dim].
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return output and weights of the implementation that the config names (sdpa, eager, flash_attention_2).

    query, key, value: [batch, heads, length, head_dim]. output: [batch, length, heads, head_dim]. Without a mask; the
    modules of the vision tower read no cache, so they compute with plain kernels beside continuous batching.
    """
    name = implementation_of(module).removeprefix("paged|")
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
    return interface(module, query, key, value, None, scaling=query.shape[-1] ** -0.5, **kwargs)


def attend_by_segment(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment_lengths: list[int],
    **kwargs: Any,
) -> torch.Tensor:
    """Return output [batch, length, heads, head_dim] of a packed row, in which each segment attends to itself alone.

    query, key, value: [batch, heads, length, head_dim]. segment_lengths add up to the length. Each segment is computed
    causally in a call of its own. The result is exact, and cheaper than a mask over the whole row. Training only.
    """
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation_of(module), eager_attention)
    outputs, kwargs = [], kwargs | {"scaling": query.shape[-1] ** -0.5}
    for parts in zip(*(states.split(segment_lengths, dim=2) for states in (query, key, value)), strict=True):
        outputs.append(interface(module, *parts, causal_mask(module, parts[0]), **kwargs)[0])
    return torch.cat(outputs, dim=1)


def implementation_of(module: nn.Module) -> str:
    """Return the name of the attention implementation in a module's config."""
    config: Any = module.config  # a QWenConfig or its part; torch declares what a module holds as Tensor or Module
    return config._attn_implementation


def causal_mask(module: nn.Module, query: torch.Tensor) -> torch.Tensor | None:
    """Return the mask [length, length] of a causal segment for eager attention, None for other implementations.

    The others read `is_causal`.
    """
    if implementation_of(module) != "eager":
        return None
    length = query.shape[2]
    return torch.full((length, length), torch.finfo(query.dtype).min, device=query.device, dtype=query.dtype).triu(1)
