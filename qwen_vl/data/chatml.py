"""ChatML: the one place where a conversation becomes ids and labels (docs/checkpoint_format.md section 6)."""

from itertools import chain

from transformers import BatchEncoding

from qwen_vl.model.chat_qwen import SYSTEM

IGNORE_INDEX = -100  # the label of a position that is no target
ROLES = ("user", "assistant")
LOSS_ON = ("reference", "answers")


class OverlengthError(ValueError):
    """A conversation whose first exchange does not fit into the maximum length."""


def encode(conversation, tokenizer, *, max_length=None, system=None, control_tokens=False, loss_on="reference"):
    """BatchEncoding of a conversation: "input_ids", "labels" (ints, equally long), "images" (references), "weight".

    conversation: {"id", "conversations": [{"from", "value"}, ..]} or its turns alone; it is never changed. A leading
    assistant turn is dropped. `system` replaces the default system message, and the record's own "system" replaces
    both. "weight" is the record's, or 1.0.
    Of a system or user turn the targets are <|im_start|>, <|im_end|> and the newline after it; of an assistant turn
    <|im_start|>, the text, <|im_end|> and the newline, but never the ids between <img> and </img>. With
    `loss_on="answers"` the targets are the text, <|im_end|> and the newline of assistant turns, and nothing else. A
    turn with "loss": false has no targets.
    Markers written in a text are plain text, apart from the image, ref, box and quad tags; `control_tokens=True`
    turns all of them into tokens. With `max_length`, whole turns are dropped from the end until the rest fits and
    ends with an answer: a picture is never cut.
    Raises OverlengthError where not even the first exchange fits, ValueError for a turn that cannot be encoded.
    """
    if loss_on not in LOSS_ON:
        raise ValueError(f"loss_on: {loss_on!r}; use one of {', '.join(LOSS_ON)}")
    record = conversation if isinstance(conversation, dict) else {"conversations": conversation}
    name, turns = record.get("id"), _turns_of(record)
    if turns[0]["from"] == "assistant":
        turns = turns[1:]
    system = record.get("system", SYSTEM if system is None else system)
    pieces = []
    for turn in [{"from": "system", "value": system}, *turns]:
        try:
            pieces.append(_encode_turn(turn, tokenizer, control_tokens, loss_on))
        except ValueError as error:
            raise ValueError(f"sample {name!r}, a {turn['from']} turn: {error}") from error
    if max_length is not None:
        pieces = pieces[: _num_fitting(name, turns, pieces, max_length)]
    input_ids, labels, images = (list(chain.from_iterable(parts)) for parts in zip(*pieces, strict=True))
    weight = float(record.get("weight", 1))
    return BatchEncoding({"input_ids": input_ids, "labels": labels, "images": images, "weight": weight})


def is_learned(turn):
    """Whether a turn is an answer that the model learns."""
    return turn["from"] == "assistant" and turn.get("loss", True)


def _turns_of(record):
    """The turns of a record, checked as far as encoding needs it."""
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


def _encode_turn(turn, tokenizer, control_tokens, loss_on):
    """(ids, labels, references) of <|im_start|>ROLE newline TEXT<|im_end|> newline."""
    newline, _ = tokenizer.encode_message("\n")
    role, _ = tokenizer.encode_message(turn["from"])
    text, references = tokenizer.encode_message(turn["value"], control_tokens=control_tokens)
    head = [tokenizer.im_start_id, *role, *newline]
    tail = [tokenizer.im_end_id, *newline]
    ids, is_answer = head + text + tail, turn["from"] == "assistant"
    if not turn.get("loss", True) or (loss_on == "answers" and not is_answer):
        return ids, [IGNORE_INDEX] * len(ids), references
    targets = list(text) if is_answer else [IGNORE_INDEX] * len(text)
    if references:
        _ignore_pictures(targets, tokenizer)
    start = IGNORE_INDEX if loss_on == "answers" else tokenizer.im_start_id
    return ids, [start] + [IGNORE_INDEX] * (len(head) - 1) + targets + tail, references


def _ignore_pictures(labels, tokenizer):
    """Ignore the ids between <img> and </img>, in place: they carry a path, which no model should learn to write."""
    span = tokenizer.image_span_tokens
    for position in [position for position, label in enumerate(labels) if label == tokenizer.img_start_id]:
        labels[position + 1 : position + 1 + span] = [IGNORE_INDEX] * span


def _num_fitting(name, turns, pieces, max_length):
    """How many of the pieces (system, then one a turn) to keep: all, or up to the last answer within max_length.

    Raises OverlengthError where no answer that is learned would be kept.
    """
    total, fitting, shortest = 0, 0, None
    for index, (ids, _, _) in enumerate(pieces):
        total += len(ids)
        if index and turns[index - 1]["from"] == "assistant":
            if shortest is None and is_learned(turns[index - 1]):
                shortest = total
            fitting = index + 1 if total <= max_length and shortest else fitting
    if total <= max_length:
        return len(pieces)
    if not fitting:
        raise OverlengthError(
            f"sample {name!r}: up to its first answer it has {shortest or total} tokens, more than the limit of "
            f"{max_length}; shorten it, use fewer pictures, or raise --model_max_length"
        )
    return fitting
