"""Attention of a pass on a CPU, request by request.

Continuous batching packs requests into one row. transformers computes the attention of that row with a mask: each token
against the keys of all requests, most of which the mask removes. With 32 requests that is 32 times the work. A CPU
gains nothing from one large call, so here each request attends to its own keys, and there is no mask to keep.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.generation.continuous_batching.cache import PagedAttentionCache

NAME = "by_request"  # of the attention implementation
ARGUMENT = "packed_requests"  # in which a pass gets its PackedRequests


class PackedRequests(NamedTuple):
    """The requests of a row: how many queries and keys each has, and its mask [queries, keys] if it needs one."""

    num_queries: list[int]
    num_keys: list[int]
    masks: list[torch.Tensor | None]

    @classmethod
    def of(cls, query_ends: torch.Tensor, key_ends: torch.Tensor) -> "PackedRequests":
        """Return the requests between `query_ends` and `key_ends` [requests + 1], as continuous batching passes them.

        Only a piece of a prompt that is not its first one needs a mask.
        """
        num_queries, num_keys = query_ends.diff().tolist(), key_ends.diff().tolist()
        masks = [
            torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if 1 < queries < keys else None
            for queries, keys in zip(num_queries, num_keys, strict=True)
        ]
        return cls(num_queries, num_keys, masks)


def attend_by_request(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache: PagedAttentionCache,
    packed_requests: PackedRequests,
    scaling: float,
    read_index: list[torch.Tensor],
    write_index: list[torch.Tensor],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output [1, length, heads, head_dim] of causal attention, and no weights.

    query, key, value: [1, heads, length, head_dim] of the new tokens. cache: has those before, and gets the new ones
    at write_index. read_index: where the tokens of each request are, one request after another.
    """
    layer: Any = module.layer_idx
    allocator = cache.layer_to_allocator[layer]
    writes = write_index[allocator.index]
    reads = read_index[allocator.index].split(packed_requests.num_keys) if read_index[allocator.index].numel() else ()
    keys, values = (states[0].transpose(0, 1) for states in (key, value))  # [length, heads, head_dim]
    allocator.update(keys, values, layer, writes[:0], writes)  # reads nothing
    outputs, start = [], 0
    for number, num_queries in enumerate(packed_requests.num_queries):
        new = slice(start, start := start + num_queries)
        all_keys, all_values, is_first = keys[new], values[new], packed_requests.num_keys[number] == num_queries
        if not is_first:  # writes nothing
            all_keys, all_values = allocator.update(keys[:0], values[:0], layer, reads[number], writes[:0])
        output = F.scaled_dot_product_attention(
            query[:, :, new],
            all_keys.transpose(0, 1)[None],
            all_values.transpose(0, 1)[None],
            packed_requests.masks[number],
            scale=scaling,
            is_causal=is_first,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, attend_by_request)


def is_used_for(model: PreTrainedModel) -> bool:
    """Return whether passes of an engine over a model use this attention."""
    return model.device.type == "cpu" and model.config.get_text_config()._attn_implementation == "sdpa"


@contextlib.contextmanager
def selected(model: PreTrainedModel) -> Iterator[None]:
    """Let the decoder use this attention for a while. The caller holds the turn, or no other thread calls the model."""
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
