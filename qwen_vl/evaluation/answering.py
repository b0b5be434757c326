"""What answers the prompts of an evaluation: who it is, what it says, and how it is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from qwen_vl.evaluation.records import Decoding, Prompt, Ranking


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answers. Two models with equal fingerprint and tokenizer give the same answers."""

    label: str  # folder name, for people
    path: str
    fingerprint: str  # content of the weights, those of the base too; of a server: its address and model name
    tokenizer: str  # SHA-256 of the files that decide the token ids
    is_chat: bool
    kind: str  # "model", "adapter", "gptq", "nf4", "server"
    dtype: str


class Said(NamedTuple):
    """What a model said to one prompt; `records.Answer` has the meaning of each field."""

    text: str | None = None
    losses: tuple[float, ...] | None = None
    choice: int | None = None
    num_tokens: int = 0
    finish: Literal["stop", "length", "rank", "error"] = "stop"
    error: str | None = None


class Answerer(Protocol):
    """A model, here or behind an address."""

    identity: ModelIdentity

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Ranking,
        *,
        option_counts: Sequence[int] = (),
        batch_size: int,
        on_batch: Callable[[list[tuple[int, Said]]], None],
    ) -> None:
        """Answer every prompt; call on_batch with (index, Said) of each finished batch."""
