"""ChatML: the one place where a conversation becomes ids and labels (SPEC section 6)."""

from itertools import chain

from transformers import BatchEncoding

from qwen_vl.model.chat_qwen import SYSTEM

IGNORE_INDEX = -100  # the label of a position that is no target
ROLES = ("user", "assistant")


class OverlengthError(ValueError):
    """A conversation whose first exchange does not fit into the maximum length."""


def encode(conversation, tokenizer, *, max_length=None, system=None, control_tokens=False):
    """BatchEncoding of a conversation: "input_ids" and "labels" (lists of int, equally long), "images" (references).

    conversation: {"id", "conversations": [{"from", "value"}, ..]} or its turns alone; it is never changed. A leading
    assistant turn is dropped. `system` replaces the default system message.
    Of a system or user turn the targets are <|im_start|>, <|im_end|> and the newline after it; of an assistant turn
    <|im_start|>, the text, <|im_end|> and the newline, but never the ids between <img> and </img>.
    Markers written in a text are plain text, apart from the image, ref, box and quad tags; `control_tokens=True`
    turns all of them into tokens. With `max_length`, whole turns are dropped from the end until the rest fits and
    ends with an answer: a picture is never cut.
    Raises OverlengthError where not even the first exchange fits, ValueError for a turn that cannot be encoded.
    """
    name, turns = _turns_of(conversation)
    first, *others = turns
    if first["from"] == "assistant":
        turns = others
    system_turn = {"from": "system", "value": SYSTEM if system is None else system}
    pieces = []
    for turn in [system_turn, *turns]:
        try:
            pieces.append(_encode_turn(turn, tokenizer, control_tokens))
        except ValueError as error:
            raise ValueError(f"sample {name!r}, a {turn['from']} turn: {error}") from error
    if max_length is not None:
        pieces = pieces[: _num_fitting(name, turns, pieces, max_length)]
    input_ids, labels, images = (list(chain.from_iterable(parts)) for parts in zip(*pieces, strict=True))
    return BatchEncoding({"input_ids": input_ids, "labels": labels, "images": images})


def _turns_of(conversation):
    """(id, turns) of a record or of a bare list of turns, checked as far as encoding needs it."""
    name, turns = None, conversation
    if isinstance(conversation, dict):
        name, turns = conversation.get("id"), conversation.get("conversations")
    if not isinstance(turns, list | tuple) or not turns:
        raise ValueError(f"sample {name!r}: no turns; give a list of at least one {{'from', 'value'}}")
    for index, turn in enumerate(turns):
        role = turn.get("from") if isinstance(turn, dict) else turn
        if role not in ROLES:
            raise ValueError(f"sample {name!r}.conversations[{index}].from: {role!r}; use 'user' or 'assistant'")
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"sample {name!r}.conversations[{index}].value: {turn.get('value')!r}; use a string")
    return name, turns


def _encode_turn(turn, tokenizer, control_tokens):
    """(ids, labels, references) of <|im_start|>ROLE newline TEXT<|im_end|> newline."""
    newline, _ = tokenizer.encode_message("\n")
    role, _ = tokenizer.encode_message(turn["from"])
    text, references = tokenizer.encode_message(turn["value"], control_tokens=control_tokens)
    head = [tokenizer.im_start_id, *role, *newline]
    tail = [tokenizer.im_end_id, *newline]
    targets = list(text) if turn["from"] == "assistant" else [IGNORE_INDEX] * len(text)
    if references:
        _ignore_pictures(targets, tokenizer)
    labels = [tokenizer.im_start_id] + [IGNORE_INDEX] * (len(head) - 1) + targets + tail
    return head + text + tail, labels, references


def _ignore_pictures(labels, tokenizer):
    """Ignore the ids between <img> and </img>, in place: they carry a path, which no model should learn to write."""
    span = tokenizer.image_span_tokens
    for position in [position for position, label in enumerate(labels) if label == tokenizer.img_start_id]:
        labels[position + 1 : position + 1 + span] = [IGNORE_INDEX] * span


def _num_fitting(name, turns, pieces, max_length):
    """How many of the pieces (system, then one a turn) to keep: all, or up to the last answer within max_length."""
    total, fitting, shortest = 0, 0, None
    for index, (ids, _, _) in enumerate(pieces):
        total += len(ids)
        if index and turns[index - 1]["from"] == "assistant":
            shortest = shortest or total
            fitting = index + 1 if total <= max_length else fitting
    if total <= max_length:
        return len(pieces)
    if not fitting:
        raise OverlengthError(
            f"sample {name!r}: its first exchange has {shortest or total} tokens, more than the limit of {max_length}; "
            "shorten it, use fewer pictures, or raise --model_max_length"
        )
    return fitting
