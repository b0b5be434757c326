"""Forward passes that a serving engine makes: packed rows of many requests, with a KV cache that is not ours.

An engine, such as vLLM or the continuous batching of transformers, says where each token stands in its own request. It
does not say how long the prompt was, on which dynamic NTK and log-n scaling depend, so its requests end at the trained
length. Images come as embeddings, or as ids that a replaced `wte` looks up: an engine's ids are what a client wrote,
so the images that they name are never opened.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested

OWN_CACHE = ("eager", "sdpa", "flex_attention")  # implementations that leave the KV cache to the model, beside flash
PAGED_CACHE = "cache"  # the argument in which continuous batching passes its KV cache, whatever the implementation


def is_engine_pass(config: PreTrainedConfig, arguments: Mapping[str, Any]) -> bool:
    """Return whether an engine makes a forward pass with these `arguments` for the attention.

    Any implementation that is not known here counts as an engine's, so a new engine opens no images either.
    """
    if arguments.get(PAGED_CACHE) is not None:
        return True
    name = config._attn_implementation
    if name is None or name in OWN_CACHE:
        return False
    return not is_flash_attention_requested(requested_attention_implementation=name)


def check_engine_pass(position_ids: torch.Tensor | None, images: Iterable[Any]) -> None:
    """Raise ValueError if an engine's pass has no positions, or one of the arguments `images`."""
    if position_ids is None:
        raise ValueError("position_ids: an engine packs many requests into a row, so it has to pass their positions")
    if any(value is not None for value in images):
        raise ValueError(
            "a forward pass under an engine takes no images; pass inputs_embeds in which the features of "
            "get_image_features replace those of the image spans"
        )
