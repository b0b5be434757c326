"""Inputs of transformers' `generate`: stop words, positions, cache, and images that stay with their rows."""

from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from .cache_qwen import GrowingCache

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members


class StopWords(LogitsProcessor):
    """A processor that forces `eos_token_id` after one of `stop_words_ids`, lists of ids."""

    def __init__(self, stop_words_ids: list[list[int]], eos_token_id: int) -> None:
        self.stop_words_ids = [list(word) for word in stop_words_ids]
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = [row.tolist() for row in input_ids[:, -max(map(len, self.stop_words_ids)) :]]
        for i, row in enumerate(rows):
            if any(row[-len(word) :] == word for word in self.stop_words_ids):
                scores[i] = -float("inf")
                scores[i, self.eos_token_id] = 0.0
        return scores


def stop_word_processors(stop_words_ids: list[list[int]], eos_token_id: int | list[int]) -> list[StopWords]:
    """Return the processors, one or none, that end a row after a stop word. Raise ValueError for malformed lists."""
    words = check_stop_words(stop_words_ids)
    ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    words = [word for word in words if word not in [[end] for end in ends]]
    return [StopWords(words, ends[0])] if words else []


def check_stop_words(stop_words_ids: Any) -> list[list[int]]:
    """Return stop words as new lists. Raise ValueError unless they are non-empty lists of ids, as in [[13], [9, 8]]."""
    is_nested = isinstance(stop_words_ids, list | tuple) and all(isinstance(w, list | tuple) for w in stop_words_ids)
    ids = [i for word in stop_words_ids for i in word] if is_nested else [None]
    if not ids or not all(stop_words_ids) or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(
            f"stop_words_ids is {stop_words_ids!r:.80}; pass a non-empty list of non-empty lists of ids, one list a "
            "word: [tokenizer.encode('Observation:')]"
        )
    return [list(word) for word in stop_words_ids]


class GenerationInputs(Mixin):
    """A mixin that makes transformers' generation work with images; it precedes GenerationMixin in the bases."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        stop_words_ids: list[list[int]] | None = None,
        logits_processor: list[LogitsProcessor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return generated ids, as transformers does. A row ends after one of `stop_words_ids`, lists of ids.

        `open_image` opens the images that the ids name, as in `forward`.
        """
        if stop_words_ids is not None:
            config = kwargs.get("generation_config") or self.generation_config
            eos = kwargs.get("eos_token_id", config.eos_token_id)
            logits_processor = [*(logits_processor or []), *stop_word_processors(stop_words_ids, eos)]
        return super().generate(inputs, *args, logits_processor=logits_processor, **kwargs)

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Return positions by `QWenModel.positions`; transformers would count the ones in the mask."""
        past, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        past_length = 0 if past is None else past.get_seq_length()
        length = inputs_tensor.shape[1] if mask is None else mask.shape[1]
        length = max(length, past_length)
        return self.transformer.positions(mask, 0, length, inputs_tensor.device).expand(inputs_tensor.shape[0], -1)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Put the cache into `model_kwargs` that transformers chooses, with a GrowingCache for its dynamic one."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if given is None and type(made) is DynamicCache and not made.offloading:
            model_kwargs["past_key_values"] = GrowingCache(self.config)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of the next forward pass. Image features go only into the prefill."""
        if kwargs.get("past_key_values") is not None and not kwargs.get("is_first_iteration", False):
            for name in ("image_features", "image_spans"):  # transformers drops only `pixel_values` after the prefill
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Return rows repeated for beams or several answers. Images are encoded once and repeated with their row."""
        pixel_values, features = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_features", None)
        if expand_size > 1 and input_ids is not None:
            encoded = self.transformer.encode_images(
                input_ids, pixel_values, features, open_image=model_kwargs.get("open_image")
            )
            if encoded is not None:
                spans, features = encoded
                by_row = [features[spans[:, 0] == row] for row in range(input_ids.shape[0])]
                pixel_values, features = None, torch.cat([part for part in by_row for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if pixel_values is not None:
            model_kwargs["pixel_values"] = pixel_values
        if features is not None:
            model_kwargs["image_features"] = features
        return input_ids, model_kwargs
