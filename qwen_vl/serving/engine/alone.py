"""Requests that run alone: they are beyond the trained length, where positions and queries scale with each prompt.

Their forward passes take turns with those of the lanes, which wait for one pass at a time.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from qwen_vl.families import v1 as family
from qwen_vl.model.chat_qwen import Cancelled, TokenStreamer
from qwen_vl.model.image_embedding_qwen import image_spans
from qwen_vl.model.image_loading_qwen import refuse_images

from .values import Sampling
from .view import ModelView


@torch.no_grad()
def answer(
    view: ModelView,
    ids: Sequence[int],
    num_prompt: int,
    pixels: torch.Tensor | None,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    on_token: Callable[[int | None], None],
    closed: threading.Event,
) -> None:
    """Continue `ids` by the model's own `generate`, and pass the new ids, end token included, then None.

    num_prompt: ids of the prompt; an <img> that the model wrote after them is a token and no image.
    pixels: [images, 3, size, size] of the spans in the prompt, or None.
    """
    config = GenerationConfig(  # what is unset here would come from the model's own settings
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    if sampling.temperature > 0:
        config.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or 0)
    inputs = torch.tensor([ids], device=view.device)
    spans = image_spans(inputs[:, :num_prompt], family.image_start_id(view.config), view.config.image_span_tokens)
    images: dict[str, Any] = {} if pixels is None else {"pixel_values": pixels.to(view.device)}
    view.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=config,
        streamer=TokenStreamer(on_token),
        stopping_criteria=[Cancelled(closed)],
        image_spans=spans,
        open_image=refuse_images,
        **images,
    )
