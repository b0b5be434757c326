"""Requests that run alone: their prompts end beyond the trained length, so positions scale with each prompt.

Their forward passes take turns with those of the lanes, which wait for one pass at a time.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from qwen_vl.model.chat_qwen import Cancelled, TokenStreamer
from qwen_vl.model.image_loading_qwen import refuse_images

from .values import EngineRequest
from .view import ModelView


@torch.no_grad()
def answer(
    view: ModelView,
    request: EngineRequest,
    pixels: torch.Tensor | None,
    ends: Sequence[int],
    on_token: Callable[[int | None], None],
    closed: threading.Event,
) -> None:
    """Generate the answer of a request by the model's own `generate`, and pass its ids, end token included, then None.

    pixels: [images, 3, size, size], or None.
    """
    sampling = request.sampling
    config = GenerationConfig(  # what is unset here would come from the model's own settings
        do_sample=False, max_new_tokens=request.max_new_tokens, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    if sampling.temperature > 0:
        config.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or 0)
    ids = torch.tensor([request.prompt.ids], device=view.device)
    images: dict[str, Any] = {} if pixels is None else {"pixel_values": pixels.to(view.device)}
    view.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        streamer=TokenStreamer(on_token),
        stopping_criteria=[Cancelled(closed)],
        open_image=refuse_images,
        **images,
    )
