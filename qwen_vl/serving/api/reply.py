"""The reply to one chat request: its answers as a whole completion or as chunks, and what they took."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.api.answers import Answers
from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.prompts import EncodedPrompt
from qwen_vl.serving.protocol.choices import Choice, ChoiceStream, Delta
from qwen_vl.serving.protocol.request import ChatRequest
from qwen_vl.serving.protocol.response import Chunks, completion, usage


class Reply:
    """A reply in the making. continues: whether it continues a message."""

    def __init__(
        self,
        request: ChatRequest,
        prompt: EncodedPrompt,
        tokenizer: QWenTokenizer,
        metrics: Metrics,
        *,
        continues: bool,
    ) -> None:
        self.request, self.prompt, self.metrics = request, prompt, metrics
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.streams = [
            ChoiceStream(request, tokenizer, images=prompt.images, continues=continues) for _ in range(request.n)
        ]
        self.num_tokens = [0] * request.n
        self.num_cached = [0] * request.n
        self.begun = self.first_token = time.monotonic()

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the completion."""
        choices: dict[int, Choice] = {}
        async with contextlib.aclosing(self._pieces(answers)) as pieces:
            async for index, piece in pieces:
                if isinstance(piece, Choice):
                    choices[index] = piece
        return completion(
            self.id,
            created=self.created,
            model=self.request.model,
            choices=[choices[index] for index in range(self.request.n)],
            calls_as=self.request.calls_as,
            usage=usage(**self.counts()),
        )

    async def chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Iterate over the chunks of a stream. None stands for something that gave no new text."""
        request = self.request
        chunks = Chunks(self.id, self.created, request.model, request.calls_as, request.include_usage)
        for index in range(request.n):
            yield chunks.start(index)
        async with contextlib.aclosing(self._pieces(answers)) as pieces:
            async for index, piece in pieces:
                if isinstance(piece, Choice):
                    for chunk in chunks.end(index, piece):
                        yield chunk
                else:
                    yield chunks.text(index, piece)
        if request.include_usage:
            yield chunks.usage(usage(**self.counts()))

    async def _pieces(self, answers: Answers) -> AsyncGenerator[tuple[int, Delta | Choice], None]:
        """Iterate over what is new: (number of the answer, new text), and in the end of each (number, Choice)."""
        while (found := await answers.next()) is not None:
            index, event = found
            if event.ids and not any(self.num_tokens):
                self.first_token = time.monotonic()
                self.metrics.first_token.observe(self.first_token - self.begun)
            self.num_tokens[index] += len(event.ids)
            self.num_cached[index] = max(event.num_cached, self.num_cached[index])
            stream = self.streams[index]
            yield index, stream.push(event.ids, event.logprobs)
            if event.finish or stream.stopped:
                answers.end(index)
                choice = stream.close(event.finish or "stop")
                self.metrics.finished.labels(self.request.model, choice.finish_reason).inc()
                yield index, choice
        self._measure()

    def counts(self) -> dict[str, int]:
        """Return the tokens of the request. The prompt counts once, so cached are those that no answer computed."""
        return {
            "prompt_tokens": len(self.prompt.ids),
            "completion_tokens": sum(self.num_tokens),
            "cached_tokens": min(self.num_cached),
        }

    def _measure(self) -> None:
        """Count a reply that is complete."""
        model, counts, end = self.request.model, self.counts(), time.monotonic()
        self.metrics.prompt_tokens.labels(model).inc(counts["prompt_tokens"])
        self.metrics.cached_tokens.labels(model).inc(counts["cached_tokens"])
        self.metrics.generated_tokens.labels(model).inc(counts["completion_tokens"])
        self.metrics.whole.observe(end - self.begun)
        if (longest := max(self.num_tokens)) > 1:
            self.metrics.token.observe((end - self.first_token) / (longest - 1))
