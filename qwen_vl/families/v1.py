"""Qwen-VL v1: the only module outside of `model/` that spells the names of the network.

Other rooms ask here for names of modules and weights, for blocks, for what adapters and quantization may change, and
for what a config says about images. Names are those of the model without adapters; `adapters` knows what PEFT adds to
them. `v1_costs` counts the operations and bytes of this network.
Source of the names: docs/checkpoint_format.md section 2.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from qwen_vl.model import QWenConfig, QWenTokenizer, attention_qwen, image_loading_qwen, image_processing_qwen, visual
from qwen_vl.model.decoder_qwen import QWenBlock, rotary_tables
from qwen_vl.model.modeling_qwen import QWenModel
from qwen_vl.model.visual import VisionTower, VisualAttentionBlock

# ---- names ----------------------------------------------------------------------------------------------------------

EMBEDDINGS = "transformer.wte"
DECODER = "transformer.h"  # followed by the number of a block
TOWER = "transformer.visual"
RESAMPLER = "transformer.visual.attn_pool"
VIT = "transformer.visual.transformer"
VIT_BLOCKS = "transformer.visual.transformer.resblocks"  # followed by the number of a block
HEAD = "lm_head"
HEAD_WEIGHT = "lm_head.weight"  # never quantized, so its dtype counts as that of the checkpoint
AFTER_VIT = ("attn_pool.", "ln_post.", "proj")  # what comes after the ViT in a tower, by the start of its names there
BLOCK_CLASSES = (QWenBlock, VisualAttentionBlock)  # what FSDP wraps; twins: configs/fsdp/, `_no_split_modules`

FIXED_TABLE = "attn_pool.pos_embed"  # the end of the name of a parameter that never trains
UNDECAYED_LEAVES = {"query", "pos_embed", "positional_embedding"}  # learned queries and position tables

# The parts of the model. Names are matched in this order, and the first match wins.
RESAMPLER_PART, VIT_PART, EMBEDDINGS_PART, HEAD_PART = "resampler", "vit", "embeddings", "lm_head"
DECODER_PART = "decoder"
PARTS = (  # part: what its names contain
    (RESAMPLER_PART, f"{RESAMPLER}."),
    (VIT_PART, f"{TOWER}."),
    (EMBEDDINGS_PART, f"{EMBEDDINGS}."),
    (HEAD_PART, f"{HEAD}."),
    (DECODER_PART, ""),
)

# ---- adapters -------------------------------------------------------------------------------------------------------

LORA_WORDS = {  # word for --lora_target_modules: pattern of the linears that it stands for
    "attention": rf"{re.escape(DECODER)}\.\d+\.attn\..+",
    "mlp": rf"{re.escape(DECODER)}\.\d+\.mlp\..+",
    "resampler": rf"{re.escape(RESAMPLER)}\..+",
    "vision": rf"{re.escape(VIT)}\..+",
}
ALL_LINEAR = "all-linear"  # all of these words together, without the head
DEFAULT_LORA_TARGETS = ("c_attn", "attn.c_proj", "w1", "w2")
TOKEN_TABLES = {"wte": EMBEDDINGS, "lm_head": HEAD}  # modules with a row for each token: their paths
WHOLE_ON_A_BASE = tuple(TOKEN_TABLES)  # train whole next to adapters if the model has never seen ChatML

# ---- quantization ---------------------------------------------------------------------------------------------------

QUANTIZED_LINEARS = (  # of a decoder block, in the order in which they run; those in one tuple have the same inputs
    ("attn.c_attn",),
    ("attn.c_proj",),
    ("mlp.w1", "mlp.w2"),
    ("mlp.c_proj",),
)
FLOAT_MODULES = (TOWER, HEAD)  # stay float when a model is quantized while loading

# ---- images and chat ------------------------------------------------------------------------------------------------

TOWER_OUTPUT, VIT_OUTPUT = "image_features", "vit_features"  # inputs of the model that can replace pixels
CHAT_FORMAT = "chatml"  # of chat models, and of every conversation in training


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to, one of those in `PARTS`."""
    return next(part for part, mark in PARTS if mark in name)


def is_vision(name: str) -> bool:
    """Return whether a parameter belongs to the vision tower, the resampler included."""
    return f"{TOWER}." in name


def is_norm(name: str) -> bool:
    """Return whether a parameter is the weight or the bias of a norm."""
    return ".ln_" in name


def decays(name: str, num_dims: int) -> bool:
    """Return whether weight decay applies to a parameter of `num_dims` dimensions.

    It does not apply to norms, biases, queries and position tables.
    """
    return num_dims > 1 and name.rpartition(".")[2] not in UNDECAYED_LEAVES


def block_of(name: str) -> str | None:
    """Return the prefix of all names in the same block, with the last dot; None for a weight outside of blocks.

    A block is what is read from disk at once: one of the decoder or of the ViT, or the head.
    """
    for start in (f"{DECODER}.", f"{VIT_BLOCKS}."):
        if name.startswith(start):
            return start + name.removeprefix(start).split(".")[0] + "."
    return f"{HEAD}." if name.startswith(f"{HEAD}.") else None


def block_name(index: int) -> str:
    """Return the prefix of the names in a decoder block, with the last dot."""
    return f"{DECODER}.{index}."


def packed_linears(config: QWenConfig) -> list[str]:
    """Return the paths of the linears that a quantized checkpoint stores packed, block by block."""
    names = [name for group in QUANTIZED_LINEARS for name in group]
    return [block_name(index) + name for index in range(config.num_hidden_layers) for name in names]


def may_be_zero_bias(name: str) -> bool:
    """Return whether a tensor that the model lacks may be the zero bias of a packed linear in an Int4 layout."""
    return name.startswith(f"{DECODER}.") and name.endswith(".bias")


# ---- modules --------------------------------------------------------------------------------------------------------


def inner_model(model: nn.Module) -> QWenModel:
    """Return the model without its head: embeddings, decoder and vision tower. `model` may have adapters."""
    return next(module for module in model.modules() if isinstance(module, QWenModel))


def tower(model: nn.Module) -> VisionTower:
    """Return the vision tower of a model, which may have adapters."""
    # If a copy of the tower trains whole, PEFT has wrapped both in a module, the copy last.
    return [module for module in inner_model(model).visual.modules() if isinstance(module, VisionTower)][-1]


def vit(vision_tower: VisionTower) -> nn.Module:
    """Return the module of a tower that computes VIT_OUTPUT."""
    return vision_tower.transformer


def resampler(model: nn.Module) -> nn.Module:
    """Return the resampler of a model, which may have adapters."""
    return tower(model).attn_pool


def patch_filters(model: nn.Module) -> torch.Tensor:
    """Return the weight [width, 3, patch, patch] of the layer that embeds the patches of an image."""
    return tower(model).conv1.weight


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a model, which may have adapters."""
    return inner_model(model).h


def block_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield (path, module) for every linear in the decoder blocks, those of adapters included."""
    for prefix, block in model.named_modules():
        if isinstance(block, QWenBlock):
            linears = ((name, module) for name, module in block.named_modules() if type(module) is nn.Linear)
            yield from ((f"{prefix}.{name}", module) for name, module in linears)


def new_block(config: QWenConfig) -> QWenBlock:
    """Build a decoder block with random weights."""
    return QWenBlock(config, 0)


def block_inputs(config: QWenConfig, length: int, device: torch.device | str | None = None) -> tuple:
    """Return the arguments of a decoder block after its hidden states [rows, length, hidden].

    They are valid for whole sequences of up to `seq_length` tokens without padding.
    """
    positions = torch.arange(length, device=device)[None]
    return None, rotary_tables(config, positions, alpha=None, scale_queries=False)


def build_tower(config: QWenConfig) -> VisionTower:
    """Build a vision tower, into which weights will be loaded."""
    return VisionTower(config)


def tower_sources() -> list[Path]:
    """Return the source files that the features of an image depend on, preprocessing included."""
    modules = (image_loading_qwen, image_processing_qwen, attention_qwen, visual)
    return [Path(inspect.getfile(module)) for module in modules]


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that a model computes in: that of its last norm, which is never quantized."""
    return next(inner_model(model).ln_f.parameters()).dtype


# ---- what a config and a tokenizer say ------------------------------------------------------------------------------


def is_family(settings: Mapping[str, Any]) -> bool:
    """Return whether the content of a config.json describes a model of this family."""
    return settings.get("model_type") == QWenConfig.model_type and "visual" in settings


def check_family(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the content of a config.json describes a model of another family."""
    if not is_family(settings):
        kind = settings.get("model_type", "unknown") + ("" if "visual" in settings else " without a vision tower")
        raise ValueError(
            f"{path}: a checkpoint of type {kind}; this tool works with Qwen-VL (model_type qwen, with `visual`)"
        )


def vision_settings(config: QWenConfig) -> dict[str, Any]:
    """Return the part of a config that the vision tower depends on, under its key of config.json."""
    return {"visual": config.visual}


def image_size(config: QWenConfig) -> int:
    """Return the side of the square, in pixels, that every image is resized to."""
    return config.visual["image_size"]


def image_start_id(config: QWenConfig) -> int:
    """Return the id of <img>; the next two ids are those of </img> and of the padding."""
    return config.visual["image_start_id"]


def tokens_per_image(config: QWenConfig) -> int:
    """Return the number of ids that an image takes in a prompt, <img> and </img> included."""
    return config.image_span_tokens + 2


def check_tokenizer(path: str | Path, tokenizer: QWenTokenizer, config: QWenConfig) -> None:
    """Raise ValueError if a tokenizer does not fit a config: its vocabulary or image span. `path` is for messages."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: the vocabulary has {len(tokenizer)} tokens, the model has {config.vocab_size} rows; "
            "use the qwen.tiktoken that belongs to the weights"
        )
    if tokenizer.img_start_id != image_start_id(config):
        raise ValueError(
            f"{path}: <img> is token {tokenizer.img_start_id}, config.visual.image_start_id is "
            f"{image_start_id(config)}; use the qwen.tiktoken that belongs to the weights"
        )
    if tokenizer.image_span_tokens != config.image_span_tokens:
        raise ValueError(
            f"{path}: image_span_tokens is {tokenizer.image_span_tokens} in tokenizer_config.json, visual.n_queries is "
            f"{config.image_span_tokens} in config.json; they must be equal"
        )


def chat_format(settings: Mapping[str, Any]) -> str | None:
    """Return how the settings of a generation_config.json say that a model chats; None if they say nothing."""
    return settings.get("chat_format")


def is_marked(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of a generation_config.json say that a model is a chat or a base model."""
    return "chat_format" in settings


def is_chat(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of a generation_config.json are those of a chat model, and not of a base model.

    Settings that say nothing count as those of a chat model, as in `QWenLMHeadModel.chat`.
    """
    return settings.get("chat_format", CHAT_FORMAT) == CHAT_FORMAT


def mark_as_chat(generation_config: GenerationConfig) -> None:
    """Set the chat format in a generation config."""
    generation_config.chat_format = CHAT_FORMAT
