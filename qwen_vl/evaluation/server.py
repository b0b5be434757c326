"""A model behind an address answers prompts: a server of the OpenAI chat protocol, such as vLLM's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_vl.evaluation.answering import ModelIdentity, OnBatch, Said
from qwen_vl.evaluation.openai_protocol import Endpoint, concurrently, first_choice, image_uri
from qwen_vl.evaluation.records import Decoding, ImageSource, Parts, Prompt, Ranking

TOP = 20  # most likely first tokens that a server lists


@dataclass
class ServerModel:
    """A model of a server. It writes its own chat format around a question, so raw prompts cannot be asked."""

    endpoint: Endpoint
    name: str  # of the model, as the server calls it
    identity: ModelIdentity

    @classmethod
    def connect(cls, endpoint: Endpoint, name: str | None = None, *, label: str | None = None) -> "ServerModel":
        """Return the model `name` of a server, by default its only one.

        Raise OSError if the server cannot be reached or refuses, ValueError if it has several models or not that one.
        """
        if name is None:
            models = endpoint.get("models").get("data")
            names = [str(model.get("id")) for model in models or [] if isinstance(model, dict)]
            if len(names) != 1:
                raise ValueError(
                    f"{endpoint.url}: has the models {', '.join(names) or 'none'}; name one: --server_model"
                )
            name = names[0]
        identity = ModelIdentity(
            label=label or name.rstrip("/").rpartition("/")[2],
            path=endpoint.url,
            fingerprint=f"server:{endpoint.url} {name}",  # what it serves under that name cannot be seen from here
            tokenizer="",
            is_chat=True,
            kind="server",
            dtype="",
        )
        return cls(endpoint, name, identity)

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Ranking,
        *,
        option_counts: Sequence[int] = (),
        batch_size: int,
        on_batch: OnBatch,
    ) -> None:
        """Ask every prompt, `batch_size` at a time; call on_batch with each answer as it comes.

        Raise ValueError for a raw prompt, and for a ranking if the server gives no probabilities. Raise OSError if the
        server fails; on_batch has had what was answered until then.
        """
        if any(prompt.style != "chat" for prompt in prompts):
            raise ValueError(raw_problem(self.endpoint.url))
        counts = option_counts or [0] * len(prompts)
        work = list(zip(prompts, counts, strict=True))
        for index, said in concurrently(lambda item: self._said(*item, decoding), work, batch_size):
            on_batch([(index, said)])

    def _said(self, prompt: Prompt, num_options: int, decoding: Decoding | Ranking) -> Said:
        """Return what the server says to one prompt."""
        try:
            messages = to_messages(prompt)
        except (OSError, ValueError) as error:  # of an image that cannot be opened
            return Said(error=str(error), finish="error")
        body: dict[str, Any] = {"model": self.name, "messages": messages, "temperature": 0}
        if isinstance(decoding, Ranking):
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
            choice = first_choice(self.endpoint.post("chat/completions", body), self.endpoint.url)
            return self._ranked(choice, decoding.num_options or num_options)
        reply = self.endpoint.post("chat/completions", body | {"max_tokens": decoding.max_new_tokens})
        choice = first_choice(reply, self.endpoint.url)
        text = choice.get("message", {}).get("content") or ""
        usage = reply.get("usage") or {}
        finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
        num_tokens = int(usage.get("completion_tokens") or 0)
        return Said(text=text.strip() if decoding.strip else text, num_tokens=num_tokens, finish=finish)

    def _ranked(self, choice: dict[str, Any], num_options: int) -> Said:
        """Return the losses of the option letters as the first token of the answer.

        A letter that is not among the TOP tokens gets the loss of the last of them, which is at most its own.
        """
        content = (choice.get("logprobs") or {}).get("content") or []
        top = content[0].get("top_logprobs") if content else None
        found: dict[str, float] = {}
        for token in top or []:
            letter = str(token.get("token", "")).strip()
            found[letter] = max(float(token["logprob"]), found.get(letter, -math.inf))
        letters = [chr(ord("A") + number) for number in range(num_options)]
        if not any(letter in found for letter in letters):
            raise ValueError(
                f"{self.endpoint.url}: gives no log probabilities of the option letters, so options cannot be ranked; "
                "let it write its answer instead: --generate"
            )
        lowest = min(found.values())
        losses = tuple(-found.get(letter, lowest) for letter in letters)
        return Said(losses=losses, choice=losses.index(min(losses)), finish="rank")


def raw_problem(url: str, benchmarks: Sequence[str] = ()) -> str:
    """Return the error for prompts without a chat format, which a chat server cannot be asked."""
    which = f" of {', '.join(benchmarks)}" if benchmarks else ""
    return (
        f"{url}: the prompts{which} are raw texts, but a server answers chats about images only; ask them as chats "
        "(--style chat; the numbers then are not comparable with published ones), or evaluate the model folder itself"
    )


def to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Return a chat prompt as messages with images as data: URIs; raise OSError or ImageError for a broken image."""
    messages: list[dict[str, Any]] = []
    if prompt.system is not None:
        messages.append({"role": "system", "content": prompt.system})
    for asked, said in prompt.history:
        messages += [{"role": "user", "content": _content(asked)}, {"role": "assistant", "content": said}]
    return [*messages, {"role": "user", "content": _content(prompt.parts)}]


def _content(parts: Parts) -> str | list[dict[str, Any]]:
    """Return the content of a user's message: plain text, or texts and images in their order."""
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": sent(part)}}
        for part in parts
    ]


def sent(image: ImageSource) -> str:
    """Return the encoded bytes of an image as a data: URI; raise ImageError if it cannot be opened."""
    image.open()  # its error names the image, which a server's would not
    return image_uri(image.read())
