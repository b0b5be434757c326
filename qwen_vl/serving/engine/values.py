"""The values that go into an engine and come out of it."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from transformers import GenerationConfig

from qwen_vl.serving.prompts import EncodedPrompt

Finish = Literal["stop", "length", "error", "cancelled"]


class QueueFull(RuntimeError):
    """Too many requests are open; the client may try again."""


class EngineStopped(RuntimeError):
    """The engine has not started, is stopping, or has died."""


class PromptTooLong(ValueError):
    """A prompt and its answer have more tokens than the model can position."""


class UnknownModel(ValueError):
    """A model name that this engine does not serve."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: always the most likely one. top_k None or 0: no limit."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None

    @classmethod
    def of(cls, config: GenerationConfig) -> "Sampling":
        """Return how `generate` samples with a model's generation config."""
        if not config.do_sample:
            return cls()
        return cls(  # with the defaults of `generate`
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            50 if config.top_k is None else config.top_k,
        )


@dataclass(frozen=True)
class EngineRequest:
    """One answer to compute. model: a name of `Engine.model_names`. sharing_key: requests share work within one key."""

    id: str
    model: str
    prompt: EncodedPrompt
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    sharing_key: str = ""
    logprobs: bool = False


class Event(NamedTuple):
    """New tokens of a request, without the end token. The last event of a request has `finish`.

    logprobs: of the chosen tokens after temperature, top-k and top-p. num_cached: prompt tokens that were not computed.
    """

    ids: list[int]
    logprobs: list[float] | None = None
    finish: Finish | None = None
    error: str | None = None
    num_cached: int = 0


class ModelEntry(NamedTuple):
    """A model that an engine serves: the base, or an adapter, whose `parent` is the base."""

    id: str
    root: str
    parent: str | None
    max_model_len: int


@dataclass(frozen=True)
class EngineSettings:
    """Sizes and limits. None: chosen from the free memory and the model.

    kv_tokens: tokens whose keys and values each model name can hold. max_batch_tokens: tokens of one forward pass.
    max_running: requests in one pass. max_waiting: open requests beyond these. num_images: images in use at once.
    request_seconds: a request's time limit.
    """

    max_running: int = 64
    max_waiting: int = 256
    max_batch_tokens: int = 512
    page_size: int = 32
    kv_tokens: int | None = None
    num_images: int = 256
    request_seconds: float | None = 600.0
    prefix_sharing: bool = True
    max_model_len: int | None = None


class EngineStats(NamedTuple):
    """Counts at one moment. waiting: requests without a token yet. The last four: rows and pages in use, and in all."""

    running: int
    waiting: int
    prompt_tokens: int
    generated_tokens: int
    images_used: int
    images: int
    pages_used: int
    pages: int
