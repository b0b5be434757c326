"""What answers prompts: a loaded model here, a server in `server.py`; and what both say of themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from .records import Decoding, Prompt, Ranking


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answers: what people call it, and the content that its answers depend on."""

    label: str  # the folder's name, for people
    path: str
    fingerprint: str  # of the weights, for an adapter of its own and its base's; of a server: its address and model
    tokenizer: str  # SHA-256 of the files that decide ids
    is_chat: bool
    kind: Literal["model", "adapter", "gptq", "nf4", "int8", "server"]
    dtype: str


class Said(NamedTuple):
    """What a model said to one prompt: a text, or the losses of the options and the smallest one's index."""

    text: str | None = None
    losses: tuple[float, ...] | None = None
    choice: int | None = None
    num_tokens: int = 0
    finish: Literal["stop", "length", "rank", "error"] = "stop"
    error: str | None = None


OnBatch = Callable[[list[tuple[int, Said]]], None]  # called with (index of the prompt, what was said) of a batch


class Answerer(Protocol):
    """Anything that answers prompts."""

    identity: ModelIdentity

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Ranking,
        *,
        option_counts: Sequence[int] = (),
        batch_size: int,
        on_batch: OnBatch,
    ) -> None:
        """Answer every prompt, and call `on_batch` after each batch.

        option_counts: for a Ranking without a number of its own, the options of each prompt. An image that cannot be
        opened gives a Said with `error` and finish "error"; the others go on.
        """
