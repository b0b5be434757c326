"""Forward passes that a serving engine makes: packed rows of many requests, with a KV cache that is not ours.

An engine, such as vLLM or the continuous batching of transformers, says where each token stands in its own request. It
does not say how long the prompt was, on which dynamic NTK and log-n scaling depend, so its requests end at the trained
length. Images come as embeddings, or as ids that a replaced `wte` looks up: an engine's ids are what a client wrote,
so the images that they name are never opened.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import is_flash_attention_requested

from .configuration_qwen import QWenConfig
from .placement_qwen import execution_device
from .tokenization_qwen import ENDOFTEXT, IM_END, IM_START, IMG_START, SPECIAL_TOKENS

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
CHAT_ENDS = (ENDOFTEXT, IM_END, IM_START)  # an answer in ChatML ends at any of them
AUTO_MODELS = {  # beside the classes that transformers writes into config.json by itself
    "AutoModel": "modeling_qwen.QWenModel",
    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    "AutoModelForImageTextToText": "modeling_qwen.QWenLMHeadModel",
}
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


def check_engine_pass(position_ids: torch.Tensor | None, past_key_values: Any, images: Iterable[Any]) -> None:
    """Raise ValueError if an engine's pass has no positions, a KV cache of ours, or one of the arguments `images`."""
    if past_key_values is not None:
        raise ValueError(
            "past_key_values: this attention implementation is taken for that of a serving engine, whose KV cache is "
            f"its own; use one of {', '.join(OWN_CACHE)} or a flash attention"
        )
    if position_ids is None:
        raise ValueError("position_ids: an engine packs many requests into a row, so it has to pass their positions")
    if any(value is not None for value in images):
        raise ValueError(
            "a forward pass under an engine takes no images; pass inputs_embeds in which the features of "
            "get_image_features replace those of the image spans"
        )


def with_chat_ends(settings: GenerationConfig, config: QWenConfig) -> GenerationConfig:
    """Return generation settings for a file; those of a chat model name every end token, since engines read no other.

    `chat` uses these end tokens whatever the settings say.
    """
    if settings.to_dict().get("chat_format") != "chatml":
        return settings
    first = config.visual["image_start_id"] - SPECIAL_TOKENS.index(IMG_START)
    settings = copy.deepcopy(settings)
    settings.eos_token_id = [first + SPECIAL_TOKENS.index(name) for name in CHAT_ENDS]
    return settings


class ServedModel(Mixin):
    """A mixin with what engines ask of a model, and with checkpoints that name it."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, with the names of all classes and, for a chat model, of all end tokens."""
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MODELS}
        settings = getattr(self, "generation_config", None)  # a QWenModel has none
        if settings is None:
            return super().save_pretrained(*args, **kwargs)
        self.generation_config = with_chat_ends(settings, self.config)
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.generation_config = settings

    @property
    def text_model(self) -> PreTrainedModel:
        """Return the QWenModel, as engines look for the decoder under this name."""
        return self.base_model

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the embeddings of images as `pooler_output` [images, n_queries, hidden].

        pixel_values: [images, 3, size, size]. Engines pass further arguments for other models; they have no effect.
        """
        visual: nn.Module = self.base_model.visual
        return BaseModelOutputWithPooling(pooler_output=visual(pixel_values.to(execution_device(visual))))

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return the resized embeddings, as transformers does, which gives only the text config the new size."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.config.get_text_config().vocab_size
        return embeddings
