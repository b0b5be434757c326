"""What answers a session: a model in this process, or a running server of the OpenAI protocol."""

import json
import threading
import urllib.error
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from qwen_vl.evaluation.openai_protocol import Endpoint
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.image_loading_qwen import OpenImage, refuse_images
from qwen_vl.model.memory_qwen import ChatMemory
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.client import image_url
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.session import Turn, messages, queries


class ModelAnswerer:
    """A model without an engine: one answer at a time, others wait. It opens images as the turns name them.

    opens_references: whether a text may name any path and address, as in the terminal. Otherwise only images that
    came with the turns are used.
    """

    def __init__(
        self, model: QWenLMHeadModel, tokenizer: QWenTokenizer, *, name: str = "", opens_references: bool = False
    ) -> None:
        self.model, self.tokenizer, self.opens_references = model, tokenizer, opens_references
        self.models: Sequence[str] = (name,)
        self.memory = ChatMemory()  # each image is encoded once, and only the new part of a prompt
        self.one_at_a_time = threading.Lock()

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None) -> Iterator[str]:
        """Yield the growing answer to the last turn. Raise ValueError if `model` is another one."""
        if model is not None and model not in self.models:
            raise ValueError(f"no model {model!r}; choose {' or '.join(self.models)}")
        texts = queries(turns)
        history = [(text, turn.answer) for text, turn in zip(texts, turns[:-1], strict=False)]
        opener = None if self.opens_references else _opener(turns)
        with self.one_at_a_time:
            yield from self.model.chat_stream(
                self.tokenizer, texts[-1], history=history, system=system, memory=self.memory, open_image=opener
            )


def _opener(turns: Sequence[Turn]) -> OpenImage:
    """Return a function that opens the images of the turns and refuses all others."""
    known = {image.reference: image for turn in turns for image in turn.images}

    def opened(reference: Any) -> Image.Image:
        return known[reference].sent().image if reference in known else refuse_images(reference)

    return opened


class ServerAnswerer:
    """A running server of the OpenAI protocol, such as `qwen-vl serve`."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self.endpoint = Endpoint.at(address, key)
        found = [entry.get("id") for entry in self.endpoint.get("models").get("data", [])]
        self.models: Sequence[str] = [name for name in found if isinstance(name, str)]
        if not self.models:
            raise ValueError(f"{address}: the server lists no models; give the address of an OpenAI-style server")

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None) -> Iterator[str]:
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
        """Yield the pieces of a streamed answer as the server sends them."""
        url = f"{self.endpoint.url}/chat/completions"
        try:
            with self.endpoint.open("chat/completions", json.dumps(body).encode()) as reply:
                for line in reply:
                    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                        continue
                    yield _delta(json.loads(line[5:]), url)
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
