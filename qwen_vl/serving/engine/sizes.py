"""How many tokens an engine keeps keys and values of."""

import psutil
import torch

from qwen_vl.model import QWenLMHeadModel

from . import attention
from .values import EngineSettings

FREE_SHARE = {"cuda": 0.8, "cpu": 0.3}  # of the free memory; a computer needs its memory for more than keys and values


def kv_tokens(model: QWenLMHeadModel, settings: EngineSettings, num_lanes: int) -> int:
    """Return the tokens that each of `num_lanes` holds. Raise ValueError if they are fewer than one request may have.

    A token takes its keys and values, and a column of the mask of a pass if the attention has one.
    """
    config, page = model.config, settings.page_size
    limit = settings.max_running * config.seq_length
    if settings.kv_tokens is not None:
        tokens = settings.kv_tokens
    else:
        width = config.kv_channels * config.num_attention_heads
        column = 0 if attention.is_used_for(model) else settings.max_batch_tokens
        size = (2 * config.num_hidden_layers * width + column) * model.dtype.itemsize
        tokens = min(int(_free_bytes(model.device) / size / num_lanes), limit)
    tokens = tokens // page * page
    least = config.seq_length + 2 * page
    if tokens < least:
        if settings.kv_tokens is not None:
            raise ValueError(f"kv_tokens is {settings.kv_tokens}; a model of this length needs at least {least}")
        raise ValueError(
            f"room for keys and values of {tokens} tokens in each of {num_lanes} models; a request takes up to "
            f"{config.seq_length}, so at least {least} are needed: free memory, serve fewer adapters, or quantize"
        )
    return tokens


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * FREE_SHARE["cuda"]
    return psutil.virtual_memory().available * FREE_SHARE["cpu"]
