"""A check of the logits of every generated token: values that are not finite raise an error."""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
EVERY = 16  # tokens between two checks on a device, because each check waits for it
NOT_FINITE = (
    "the logits are not finite (the weights are {dtype}): the weights are damaged, or float16 overflows: try "
    "--dtype bfloat16, in Python dtype=torch.bfloat16"
)
NO_TOKEN_LEFT = (
    "no token is left to choose from: after the logits processors the scores are NaN, +inf, or -inf for every token; "
    "correct those passed as logits_processor, or settings such as suppress_tokens and bad_words_ids"
)


class LogitsError(ValueError):
    """Logits from which no token can be chosen. The message says why, and what to do."""


class FiniteScores(LogitsProcessor):
    """A processor that raises LogitsError if a row's largest score is not finite: NaN, +inf, or -inf for all tokens.

    -inf for some tokens only masks them. One call in `every` raises; `look` at the end raises for the others. Until
    then the scores of such a row are set to zero, because sampling from NaN would fail on the device.
    """

    def __init__(self, message: str, every: int) -> None:
        self.message, self.every = message, every
        self.calls = 0
        self.found: torch.Tensor | None = None  # bool [], where the scores are

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wrong = ~scores.amax(dim=-1, keepdim=True).isfinite()  # [rows, 1]; the largest of any with NaN is NaN
        self.found = wrong.any() if self.found is None else self.found | wrong.any()
        self.calls += 1
        if (self.calls - 1) % self.every == 0:
            self.look()
            return scores
        return scores.masked_fill(wrong, 0)

    def look(self) -> None:
        """Raise LogitsError if any call so far found such a row."""
        if self.found is not None and self.found.item():
            raise LogitsError(self.message)


class FiniteLogits(FiniteScores):
    """A FiniteScores for the model's own logits, before any other processor."""


class CheckedGeneration(Mixin):
    """A mixin whose `generate` raises LogitsError for logits that are not finite, however it is called."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        logits_processor: list[LogitsProcessor] | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what transformers returns. Raise LogitsError for logits that are not finite."""
        # A stream waits for each token anyway, and must not yield one that was chosen from NaN.
        every = 1 if self.device.type == "cpu" or streamer is not None else EVERY
        checks = [FiniteLogits(NOT_FINITE.format(dtype=self.dtype), every), FiniteScores(NO_TOKEN_LEFT, every)]
        processors = [*(logits_processor or []), *checks]
        output = super().generate(inputs, *args, logits_processor=processors, streamer=streamer, **kwargs)
        for check in checks:
            check.look()
        return output

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        """Return the processors that transformers makes, with FiniteLogits first, because others hide NaN."""
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        if generation_config.remove_invalid_values:  # the caller wants NaN and inf to be replaced
            processors[:] = [one for one in processors if not isinstance(one, FiniteLogits)]
        processors.sort(key=lambda one: not isinstance(one, FiniteLogits))
        return processors
