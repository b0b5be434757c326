"""ChatML: the one place where a conversation becomes ids and labels (docs/checkpoint_format.md section 6)."""

import contextlib
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple, TypedDict

from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import image_files

IGNORE_INDEX = -100  # the label of a position that is no target
ROLES = ("user", "assistant")
LOSS_ON = ("reference", "answers")
POLICIES = ("trim", "drop", "error")

Record = Mapping[str, Any]  # a conversation as docs/data.md describes it: {"id", "conversations": [turn, ..], ..}


class OverlengthError(ValueError):
    """An error: the first exchange of a conversation exceeds the maximum length."""


@dataclass(frozen=True)
class EncodeOptions:
    """The options of encoding. Two runs with equal options make equal samples.

    max_length: the most tokens of a sample, or None. overlength: what happens to a longer conversation; it is shortened
    by whole turns ("trim", dropped if its first answer does not fit), dropped ("drop"), or ends the run ("error").
    loss_on, control_tokens: see `encode`. Raises ValueError if a value is unknown.
    """

    max_length: int | None = None
    overlength: str = "trim"
    loss_on: str = "reference"
    control_tokens: bool = False

    def __post_init__(self) -> None:
        check_choice("loss_on", self.loss_on, LOSS_ON)
        check_choice("overlength", self.overlength, POLICIES)


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError if an option has a value that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{option}: {value!r}; use one of {', '.join(choices)}")


class Sample(UserDict[str, Any]):
    """One encoded conversation, read like a dict.

    Keys: "input_ids" and "labels" (lists of ints, equally long), "images" (a reference or path for each image span),
    "weight" (float). A data set adds "id" and, when it mixes several sources, "source" (the index of the sample's own).
    It is not a dict, because transformers' Trainer removes all keys that `forward` does not name from dicts.
    """

    @property
    def input_ids(self) -> list[int]:
        return self["input_ids"]

    @property
    def labels(self) -> list[int]:
        return self["labels"]

    @property
    def images(self) -> list[str]:
        return self["images"]

    @property
    def weight(self) -> float:
        return self["weight"]

    def named(self, name: str | int, search_dirs: Iterable[str]) -> "Sample":
        """Return the sample with its conversation's id and with paths for its local images.

        An image that is in none of the search_dirs keeps its reference.
        """
        folders, images = list(search_dirs), self.images
        if folders:
            images = [image_files.located(image, folders) for image in images]
        return Sample({**self.data, "id": name, "images": images})


class _Overlength(TypedDict):
    id: str | int
    length: int
    kept_length: int
    action: str  # "trimmed" or "dropped"


class Overlength(_Overlength, total=False):
    """The effect of the length limit on one conversation, a line of overlength.jsonl."""

    source: str  # the name of its source, if there are several


class EncodedTurn(NamedTuple):
    """The ids of a turn, a label for each of them, and the references of its images."""

    input_ids: list[int]
    labels: list[int]
    images: list[str]


def fit(
    conversation: Record, tokenizer: QWenTokenizer, options: EncodeOptions
) -> tuple[Sample | None, Overlength | None]:
    """Return (sample, entry): the sample within `max_length` or None, and what the limit did or None if nothing.

    The policy "error" drops the sample here. The caller, who knows the other conversations, raises the error.
    """
    encoded = partial(encode, conversation, tokenizer, control_tokens=options.control_tokens, loss_on=options.loss_on)
    whole = encoded()
    length = len(whole.input_ids)
    if options.max_length is None or length <= options.max_length:
        return whole, None
    sample = None
    if options.overlength == "trim":
        with contextlib.suppress(OverlengthError):
            sample = encoded(max_length=options.max_length)
    kept_length, action = (len(sample.input_ids), "trimmed") if sample else (0, "dropped")
    return sample, Overlength(id=conversation["id"], length=length, kept_length=kept_length, action=action)


def encode(
    conversation: Record | Sequence[Record],
    tokenizer: QWenTokenizer,
    *,
    max_length: int | None = None,
    control_tokens: bool = False,
    loss_on: str = "reference",
) -> Sample:
    """Return the Sample of a conversation, without "id" and with the references of its images as they are written.

    conversation: {"id", "conversations": [{"from", "value"}, ..]} or its turns alone; it is never changed. A leading
    assistant turn is dropped. The record's "system" replaces the default system message. "weight" is the record's, or
    1.0.
    The targets of a system or user turn are <|im_start|>, <|im_end|> and the newline after it. Those of an assistant
    turn are <|im_start|>, the text, <|im_end|> and the newline, but never the ids between <img> and </img>. With
    `loss_on="answers"` the targets are the text, <|im_end|> and the newline of assistant turns, and nothing else. A
    turn with "loss": false has no targets.
    Markers written in a text are plain text, apart from the image, ref, box and quad tags; `control_tokens=True`
    turns all of them into tokens. With `max_length`, whole turns are dropped from the end until the rest fits and
    ends with an answer; an image is never cut.
    Raise OverlengthError if not even the first exchange fits, ValueError if a turn cannot be encoded.
    """
    check_choice("loss_on", loss_on, LOSS_ON)
    record = conversation if isinstance(conversation, Mapping) else {"conversations": conversation}
    name, turns = record.get("id"), _turns_of(record)
    if turns[0]["from"] == "assistant":
        turns = turns[1:]
    encoded = []
    for turn in [{"from": "system", "value": record.get("system", SYSTEM)}, *turns]:
        try:
            encoded.append(_encode_turn(turn, tokenizer, control_tokens, loss_on))
        except ValueError as error:
            raise ValueError(f"sample {name!r}, a {turn['from']} turn: {error}") from error
    if max_length is not None:
        encoded = encoded[: _num_fitting(name, turns, encoded, max_length)]
    input_ids, labels, images = (list(chain.from_iterable(parts)) for parts in zip(*encoded, strict=True))
    weight = float(record.get("weight", 1))
    return Sample({"input_ids": input_ids, "labels": labels, "images": images, "weight": weight})


def _turns_of(record: Record) -> Sequence[Record]:
    """Return the turns of a record. Raise ValueError if there are none, or if one lacks a valid role or text."""
    name, turns = record.get("id"), record.get("conversations")
    if not isinstance(turns, list | tuple) or not turns:
        raise ValueError(f"sample {name!r}: no turns; give a list of at least one {{'from', 'value'}}")
    for index, turn in enumerate(turns):
        role = turn.get("from") if isinstance(turn, dict) else turn
        if role not in ROLES:
            raise ValueError(f"sample {name!r}.conversations[{index}].from: {role!r}; use 'user' or 'assistant'")
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"sample {name!r}.conversations[{index}].value: {turn.get('value')!r}; use a string")
    return turns


def _encode_turn(turn: Record, tokenizer: QWenTokenizer, control_tokens: bool, loss_on: str) -> EncodedTurn:
    """Return <|im_start|>ROLE newline TEXT<|im_end|> newline as ids, the label of each, and the image references."""
    head, tail = _frame(turn["from"], tokenizer)
    text, images = tokenizer.encode_message(turn["value"], control_tokens=control_tokens)
    ids, is_answer = head + text + tail, turn["from"] == "assistant"
    if not turn.get("loss", True) or (loss_on == "answers" and not is_answer):
        return EncodedTurn(ids, [IGNORE_INDEX] * len(ids), images)
    targets = list(text) if is_answer else [IGNORE_INDEX] * len(text)
    # The ids between <img> and </img> carry a path, which no model should learn to write.
    span = tokenizer.image_span_tokens
    for position, token in enumerate(text if images else ()):
        if is_answer and token == tokenizer.img_start_id:
            targets[position + 1 : position + 1 + span] = [IGNORE_INDEX] * span
    start = IGNORE_INDEX if loss_on == "answers" else tokenizer.im_start_id
    return EncodedTurn(ids, [start] + [IGNORE_INDEX] * (len(head) - 1) + targets + tail, images)


@lru_cache(maxsize=8)  # the same for every turn of a role
def _frame(role: str, tokenizer: QWenTokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and after the text of a turn: <|im_start|>ROLE newline, and <|im_end|> newline."""
    (newline, _), (name, _) = tokenizer.encode_message("\n"), tokenizer.encode_message(role)
    return [tokenizer.im_start_id, *name, *newline], [tokenizer.im_end_id, *newline]


def is_learned(turn: Record) -> bool:
    """Return whether a turn is an answer that the model learns."""
    return turn["from"] == "assistant" and turn.get("loss", True)


def _num_fitting(name: object, turns: Sequence[Record], encoded: Sequence[EncodedTurn], max_length: int) -> int:
    """Return how many encoded turns (the system message first) to keep: all, or up to the last answer that fits.

    Raise OverlengthError if no learned answer would be kept.
    """
    total, fitting, shortest = 0, 0, None
    for index, (ids, _, _) in enumerate(encoded):
        total += len(ids)
        if index and turns[index - 1]["from"] == "assistant":
            if shortest is None and is_learned(turns[index - 1]):
                shortest = total
            fitting = index + 1 if total <= max_length and shortest else fitting
    if total <= max_length:
        return len(encoded)
    if not fitting:
        raise OverlengthError(
            f"sample {name!r}: up to its first answer it has {shortest or total} tokens, more than the limit of "
            f"{max_length}; shorten it, use fewer images, or raise --model_max_length"
        )
    return fitting
