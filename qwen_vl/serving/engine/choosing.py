"""How a lane chooses tokens: what continuous batching does, without work that changes nothing.

transformers sorts, masks and samples the scores of all requests in each pass, which takes as long as the pass itself
on a CPU. Greedy requests, the most common ones, need their best token alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingTemperatureLogitsWarper,
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from .values import Sampling

Arguments = dict[str, Any]

GREEDY: Arguments = {"temperature": 1.0, "top_p": 1.0, "top_k": 1}


def arguments_of(sampling: Sampling, *, vocab_size: int) -> Arguments:
    """Return how continuous batching is told the sampling of a request."""
    if sampling.temperature == 0 or sampling.top_k == 1:
        return GREEDY
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    return {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p), "top_k": top_k}


class SomeRows(ContinuousBatchingLogitsProcessor):
    """A processor of continuous batching that works on the rows alone, one a request, which it changes.

    changes: whether it changes the scores of a request with these arguments.
    """

    def __init__(self, inner: Any, changes: Callable[[Arguments], bool]) -> None:
        self.inner, self.changes = inner, changes
        self.supported_kwargs, self.ignored_kwargs = inner.supported_kwargs, inner.ignored_kwargs
        self.rows: Sequence[int] = ()

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Write the default argument into a tensor."""
        self.inner.fill_defaults(int32_tensor)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> torch.Tensor:
        """Return the arguments [requests], and remember the rows."""
        wanted = [request.state.logit_processor_kwargs for request in requests_with_new_token]
        self.rows = [row for row, arguments in enumerate(wanted) if self.changes(arguments)]
        return self.inner.prepare_tensor_args(requests_with_new_token)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return the scores [requests, vocab_size]."""
        if not self.rows:
            return scores
        rows = torch.tensor(self.rows, device=scores.device)
        return scores.index_copy(0, rows, self.inner(scores[rows], tensor_arg[rows]))


class Chooser:
    """Chooses the tokens of a pass: the best ones of greedy requests, at random for the others."""

    def __init__(self, processors: list[Any], *, vocab_size: int) -> None:
        """Replace temperature, top-k and top-p in the `processors` of continuous batching."""
        tests: dict[type, Callable[[Arguments], bool]] = {
            ContinuousBatchingTemperatureLogitsWarper: lambda asked: asked != GREEDY,
            ContinuousBatchingTopKLogitsWarper: lambda asked: 1 < asked["top_k"] < vocab_size,
            ContinuousBatchingTopPLogitsWarper: lambda asked: asked["top_p"] < 1,
        }
        processors[:] = [SomeRows(one, tests[type(one)]) for one in processors]
        self.sampling: SomeRows = next(
            one for one in processors if isinstance(one.inner, ContinuousBatchingTemperatureLogitsWarper)
        )

    def __call__(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Write the tokens, and the float32 bits of their logarithmic probabilities, into output_ids [2, .. requests].

        scores: [1, requests, vocab_size], processed. A greedy token is certain: its logarithmic probability is 0.
        """
        scores = scores[0]
        tokens, logprobs = scores.argmax(dim=-1), scores.new_zeros(len(scores), dtype=torch.float32)
        if self.sampling.rows:
            rows = torch.tensor(self.sampling.rows, device=scores.device)
            probabilities = scores[rows].softmax(dim=-1)
            sampled = torch.multinomial(probabilities, num_samples=1)
            tokens[rows], logprobs[rows] = sampled[:, 0], probabilities.gather(1, sampled)[:, 0].log()
        output_ids[0, : len(tokens)] = tokens
        output_ids[1, : len(tokens)] = logprobs.view(torch.int32)
