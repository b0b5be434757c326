"""Requests that run alone: their prompts end beyond the trained length, so positions scale with each prompt.

Their forward passes take turns with those of the lanes, which wait for one pass at a time.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from qwen_vl.model.image_loading_qwen import refuse_images

from .values import EngineRequest
from .view import ModelView


class Tokens(BaseStreamer):
    """A streamer that passes each new id to a function, after the prompt."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self.on_token, self.prompt_seen = on_token, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.on_token(int(value.reshape(-1)[0]))
        self.prompt_seen = True

    def end(self) -> None:
        return None


class Closed(StoppingCriteria):
    """A criterion that ends generation once a request is over."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.closed.is_set(), device=input_ids.device)


@torch.no_grad()
def answer(
    view: ModelView,
    request: EngineRequest,
    pixels: torch.Tensor | None,
    ends: Sequence[int],
    on_token: Callable[[int], None],
    closed: threading.Event,
) -> None:
    """Generate the answer of a request by the model's own `generate`, and pass its ids, end token included.

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
        streamer=Tokens(on_token),
        stopping_criteria=[Closed(closed)],
        open_image=refuse_images,
        **images,
    )
