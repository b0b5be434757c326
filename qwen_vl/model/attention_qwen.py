"""The decoder's attention: kernels behind transformers' attention interface, packed rows sample by sample."""

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention over [batch, heads, length, head_dim]: output [batch, length, heads, head_dim] and weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend(module, query, key, value, attention_mask=None, segment_lengths=None, **kwargs):
    """Attention by the implementation that the config names (sdpa, eager, flash_attention_2): output and weights.

    query, key, value: [batch, heads, length, head_dim]. output: [batch, length, heads, head_dim].
    With `segment_lengths` (whose sum is the length) each segment attends causally within itself alone, one call each:
    that costs less than any mask over the whole row, and is exact.
    """
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    kwargs["scaling"] = query.shape[-1] ** -0.5
    if segment_lengths is None:
        return interface(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for parts in zip(*(states.split(segment_lengths, dim=2) for states in (query, key, value)), strict=True):
        outputs.append(interface(module, *parts, causal_mask(module, parts[0]), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def causal_mask(module, query):
    """The mask that eager attention needs for one causal segment; None where the implementation knows `is_causal`."""
    if module.config._attn_implementation != "eager":
        return None
    length = query.shape[2]
    return torch.full((length, length), torch.finfo(query.dtype).min, device=query.device, dtype=query.dtype).triu(1)
