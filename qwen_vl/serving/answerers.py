"""What answers a session: an engine or a model in this process, or a running server of the OpenAI protocol."""

import json
import queue
import urllib.error
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_vl.evaluation.openai_protocol import Endpoint
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.memory_qwen import ChatMemory
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.client import image_url
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.engine import Engine, EngineRequest, EngineStopped, Event, QueueFull, Sampling
from qwen_vl.serving.prompts import encode
from qwen_vl.serving.session import Turn, messages, queries
from qwen_vl.serving.stopping import TextStream

MAX_NEW_TOKENS = 512  # where a model's own settings say nothing
WAIT_SECONDS = 0.2  # how late a stop is noticed before the first token


class ModelAnswerer:
    """A model without an engine, as in a terminal: one answer at a time, and texts may name any image."""

    def __init__(self, model: QWenLMHeadModel, tokenizer: QWenTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.models: Sequence[str] = ()
        self.memory = ChatMemory()  # each image is encoded once, and only the new part of a prompt

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None, sharing_key: str = "") -> Iterator[str]:
        """Yield the growing answer to the last turn. Raise ValueError if a `model` is named."""
        if model is not None:
            raise ValueError(f"no model {model!r}; there is one model here, without a name")
        texts = queries(turns)
        history = [(text, turn.answer) for text, turn in zip(texts, turns[:-1], strict=False)]
        yield from self.model.chat_stream(self.tokenizer, texts[-1], history=history, system=system, memory=self.memory)


class EngineAnswerer:
    """An engine in this process, which has been started. Answers of several sessions are computed together."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.models: Sequence[str] = [entry.id for entry in engine.model_names]

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None, sharing_key: str = "") -> Iterator[str]:
        """Yield the growing answer to the last turn, and the same text again while nothing new comes.

        Raise ValueError for a prompt that is too long and an unknown model, OSError if the engine cannot answer.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = self._request(turns, system, model or self.models[0], sharing_key)
        try:
            cancel = self.engine.submit(request, events.put)
        except (QueueFull, EngineStopped) as error:
            raise OSError(str(error)) from error
        stream, text, finish = TextStream(self.engine.tokenizer), "", None
        try:
            while finish is None:
                try:
                    event = events.get(timeout=WAIT_SECONDS)
                except queue.Empty:
                    yield text
                    continue
                if event.error is not None:
                    raise OSError(event.error)
                finish = event.finish
                text += stream.push(event.ids)
                yield text
            yield text + stream.close()
        finally:
            cancel()

    def _request(self, turns: Sequence[Turn], system: str, model: str, sharing_key: str) -> EngineRequest:
        """Return the request for the answer to the last turn, with the settings of the model's own `chat`."""
        engine, config = self.engine, self.engine.generation_config
        prompt = encode(engine.tokenizer, messages(turns, system))
        room = max((entry.max_model_len for entry in engine.model_names if entry.id == model), default=0)
        wanted = min(config.max_new_tokens or MAX_NEW_TOKENS, max(room - len(prompt.ids), 1))
        return EngineRequest("", model, prompt, wanted, Sampling.of(config), sharing_key)


class ServerAnswerer:
    """A running server of the OpenAI protocol, such as `qwen-vl serve`."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self.endpoint = Endpoint.at(address, key)
        found = [entry.get("id") for entry in self.endpoint.get("models").get("data", [])]
        self.models: Sequence[str] = [name for name in found if isinstance(name, str)]
        if not self.models:
            raise ValueError(f"{address}: the server lists no models; give the address of an OpenAI-style server")

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None, sharing_key: str = "") -> Iterator[str]:
        """Yield the growing answer to the last turn. Raise OSError with the server's words if it refuses."""
        said: list[dict[str, Any]] = [
            {"role": message.role, "content": [_part(part) for part in message.parts]}
            if message.images
            else {"role": message.role, "content": "".join(part for part in message.parts if isinstance(part, str))}
            for message in messages(turns, system)
        ]
        text = ""
        for delta in self._deltas({"model": model or self.models[0], "messages": said, "stream": True}):
            text += delta
            yield text
        yield text

    def _deltas(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield the pieces of a streamed answer as the server sends them, "" for a line without text."""
        url = f"{self.endpoint.url}/chat/completions"
        try:
            with self.endpoint.open("chat/completions", json.dumps(body).encode()) as reply:
                for line in reply:
                    is_event = line.startswith(b"data:") and line[5:].strip() != b"[DONE]"
                    yield _delta(json.loads(line[5:]), url) if is_event else ""
        except urllib.error.HTTPError as error:
            raise OSError(f"{url}: {_reason(error)}") from error
        except urllib.error.URLError as error:
            raise OSError(f"{url}: {error.reason}; is the server running?") from error


def _delta(event: dict[str, Any], url: str) -> str:
    """Return the text of one event of a stream. Raise OSError for an event that reports an error."""
    if "error" in event:
        raise OSError(f"{url}: {event['error'].get('message', 'the server failed')}")
    choices = event.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what a server says about a refused request."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {error.code}"


def _part(part: str | SentImage) -> dict[str, Any]:
    """Return a part of a message as the protocol writes it. Images are sent without loss."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": image_url(part.image)}}
