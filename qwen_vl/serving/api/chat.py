"""POST /v1/chat/completions: from a request to its reply, whole or as a stream."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qwen_vl.serving.api.access_log import note
from qwen_vl.serving.api.answers import begun
from qwen_vl.serving.api.body import read_json
from qwen_vl.serving.api.errors import INTERNAL
from qwen_vl.serving.api.images import ImagePool
from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.api.reply import Reply
from qwen_vl.serving.api.running import Running
from qwen_vl.serving.api.security import sharing_key
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.api.sse import EventSender
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.engine import Engine, EngineRequest, ModelEntry, Sampling
from qwen_vl.serving.prompts import encode
from qwen_vl.serving.protocol.errors import ApiError
from qwen_vl.serving.protocol.request import ChatRequest, Limits, parse

logger = logging.getLogger(__name__)
DEFAULT_TOKENS = 512  # of an answer, where neither the request nor the model says how many
LEAST_TEMPERATURE = 0.01  # below it, scores overflow; answers are greedy there
LAST_SECONDS = 5  # how long a client may take to read that its stream failed


class ChatRoute:
    """The route, as an ASGI app: it sees a client go away while it works, and can end a stream with an error."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        *,
        limits: Limits,
        images: ImagePool,
        running: Running,
        metrics: Metrics,
    ) -> None:
        self.engine, self.settings, self.limits = engine, settings, limits
        self.images, self.running, self.metrics = images, running, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raise ApiError if nothing has been sent yet; later an error ends the stream."""
        sender, completion = EventSender(send), None
        try:
            with self.running.slot():
                work = self._answer(await self._read(Request(scope, receive)), scope, sender, time.monotonic())
                completion = await self.running.guard(work, receive, seconds=self.settings.request_seconds)
        except ClientDisconnect:
            self.metrics.canceled.inc()
        except Exception as error:
            if not sender.started:
                raise
            await _fail(sender, error)
        if completion is not None:
            await JSONResponse(completion)(scope, receive, send)

    async def _read(self, request: Request) -> ChatRequest:
        """Return the checked request of a body. Raise ApiError if it is none, or asks for another model."""
        settings = self.settings
        body = await read_json(request, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
        return await anyio.to_thread.run_sync(self._parse, body)

    def _parse(self, body: dict[str, Any]) -> ChatRequest:
        """Return the checked request of a decoded body. It runs in a thread."""
        return parse(body, self.limits)

    def _entry(self, request: ChatRequest) -> ModelEntry:
        """Return the model that a request asks for. Raise ApiError (404) if there is none."""
        return find_model(self.engine.model_names, request.model)

    async def _answer(
        self, request: ChatRequest, scope: Scope, sender: EventSender, arrived: float
    ) -> dict[str, Any] | None:
        """Return the completion of a request, None if it has been streamed."""
        entry = self._entry(request)
        images = await self.images.read(request.addresses)
        reply = await anyio.to_thread.run_sync(self._prepare, request, images, entry)
        reply.begun = arrived
        request = reply.request  # without its messages, whose images may be large
        one = EngineRequest(
            reply.id,
            entry.id,
            reply.prompt,
            self._max_tokens(request, entry, len(reply.prompt.ids)),
            self._sampling(request),
            sharing_key(scope, self.settings),
            request.logprobs,
        )
        try:
            with begun(self.engine, [one] * request.n) as answers:
                if not request.stream:
                    return await reply.whole(answers)
                await sender.send_all(reply.chunks(answers))
        finally:
            note(scope, completion=reply.id, model=entry.id, images=len(images), **reply.counts())
        return None

    def _prepare(self, request: ChatRequest, images: Sequence[SentImage], entry: ModelEntry) -> Reply:
        """Return the reply to a request with its prompt. It takes a while for a long text, so it runs in a thread."""
        messages, continues = request.conversation(images)
        prompt = encode(self.engine.tokenizer, messages, continues=continues)
        short = replace(request, messages=())
        return Reply(short, prompt, self.engine.tokenizer, self.metrics, continues=continues)

    def _max_tokens(self, request: ChatRequest, entry: ModelEntry, num_prompt_tokens: int) -> int:
        """Return how many tokens an answer may have: what the request says, or the model's own number if it fits."""
        if request.max_tokens is not None:
            return request.max_tokens
        length = self.engine.config.seq_length if request.logprobs else entry.max_model_len
        wanted = self.engine.generation_config.max_new_tokens or DEFAULT_TOKENS
        return max(1, min(wanted, length - num_prompt_tokens))

    def _sampling(self, request: ChatRequest) -> Sampling:
        """Return how tokens are chosen: as the request says, and else as the model's own settings do."""
        own = Sampling.of(self.engine.generation_config)
        temperature = own.temperature if request.temperature is None else request.temperature
        if temperature < LEAST_TEMPERATURE:
            return Sampling()
        top_p = own.top_p if request.top_p is None else request.top_p
        return Sampling(temperature, top_p, own.top_k if request.top_k is None else request.top_k)


def find_model(entries: Sequence[ModelEntry], name: str) -> ModelEntry:
    """Return the model of a name. Raise ApiError (404) if there is none."""
    for entry in entries:
        if entry.id == name:
            return entry
    names = ", ".join(entry.id for entry in entries)
    message = f"model: there is no model {name[:80]!r}; use one of {names}"
    raise ApiError(404, message, param="model", code="model_not_found")


async def _fail(sender: EventSender, error: Exception) -> None:
    """End a started stream with an error."""
    if not isinstance(error, ApiError):
        logger.error("a stream failed", exc_info=error)
        error = INTERNAL
    with anyio.move_on_after(LAST_SECONDS):
        await sender.fail(error)
