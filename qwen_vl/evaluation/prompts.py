"""Prompts: from a record and a template to what the model reads.

A template is text with placeholders. What stands around `<img>{image}</img>` belongs to the image: a "Picture
{number}: " before it and one newline after it are repeated for each image of the record. A record without images has
none of it.

Source: docs/evaluation.md; the first six templates are those of the published numbers, to the character.
"""

import random
import re
from collections.abc import Callable, Sequence

from qwen_vl.evaluation.records import Parts, Prompt, Record, Style

CONVERSATION = "conversation"
TEMPLATES = {
    "caption": "<img>{image}</img>Describe the image in English:",
    "vqa": "<img>{image}</img>{question} Answer:",
    "grounding": "<img>{image}</img><ref>{sent}</ref><box>",
    "choice": "<img>{image}</img>Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:",
    "seed": "<img>{image}</img>\nQuestion: {question}\nOptions: {options}\nAnswer:",
    "mme": "<img>{image}</img>\n{question}",
    # No published prompt for the others. MMMU: as `seed`, no list for an open question; its own `<image 1>` is text.
    "exam": "<img>{image}</img>\nQuestion: {question}\n{option_lines}Answer:",
    # As the model's own list format writes a question about several images.
    "chat": "Picture {number}: <img>{image}</img>\n{question}",
    CONVERSATION: "{conversation}",  # a turn of the user's own data, as it is written there
}

PLACEHOLDER = re.compile(r"\{(\w+)\}")
IMAGE = re.compile(r"(?:Picture \{number\}: ?)?<img>\{image\}</img>\n?")
TAG = re.compile(r"<img>(.*?)</img>", re.DOTALL)  # in a conversation of the project's own format
NO_HINT = "N/A"
VALUES: dict[str, Callable[[Record], str]] = {
    "question": lambda record: record.question,
    "sent": lambda record: record.question,
    "hint": lambda record: record.hint if record.hint.strip() else NO_HINT,
    "options": lambda record: lettered(record.options),
    "option_lines": lambda record: f"Options: {lettered(record.options)}\n" if record.options else "",
}


def lettered(options: Sequence[str]) -> str:
    """Return the options one a line, each after its letter: "A. cat\\nB. dog"."""
    return "\n".join(f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))


def check_template(template: str) -> str:
    """Return the text of a template, a key of TEMPLATES or a text of the user's own.

    Raise ValueError for a placeholder that is not known, and for a template that does not say where the images go.
    """
    text = TEMPLATES.get(template, template)
    if text == TEMPLATES[CONVERSATION]:
        return text
    places = IMAGE.findall(text)
    if len(places) != 1:
        raise ValueError(
            f"template {template!r}: has {len(places)} places for images; write <img>{{image}}</img> once, or use one "
            f"of {', '.join(TEMPLATES)}"
        )
    unknown = sorted({name for name in PLACEHOLDER.findall(IMAGE.sub("", text)) if name not in VALUES})
    if unknown:
        raise ValueError(
            f"template {template!r}: {{{unknown[0]}}} is not known; use {', '.join(f'{{{name}}}' for name in VALUES)}"
        )
    return text


def build(record: Record, *, template: str, style: Style = "raw", shots: Sequence[Record] = ()) -> Prompt:
    """Return the prompt of a record.

    template: a key of TEMPLATES, or a text with the same placeholders. style: "raw" is the filled template as it is,
    "chat" the same text as the question of a chat turn. shots: solved records. A raw prompt begins with each of them,
    filled, with one space and its answer; in a chat prompt they are earlier turns.
    Raise ValueError for a template that cannot be filled, a shot without an answer, and a conversation whose tags are
    not as many as its images.
    """
    text = check_template(template)
    solved = [(_filled(shot, text), _answer_of(shot)) for shot in shots]
    if text == TEMPLATES[CONVERSATION]:
        turns, parts = _conversation(record)
    else:
        turns, parts = (), _filled(record, text)
    if style == "chat":
        return Prompt(parts, style, record.system, (*solved, *turns))
    if turns or record.system is not None:
        raise ValueError(f"record {record.id}: has earlier turns or a system text, which a raw prompt cannot hold")
    before = [part for shot, answer in solved for part in (*shot, f" {answer}")]
    return Prompt(_merged([*before, *parts]), style)


def draw_shots(pool: Sequence[Record], record_id: str, *, num_shots: int, seed: int) -> list[Record]:
    """Return `num_shots` records of the training file for one record, the same ones for the same seed and id.

    Raise ValueError if the pool has fewer than that.
    """
    if num_shots > len(pool):
        raise ValueError(f"{num_shots} solved examples were asked for, the training file has {len(pool)}; use fewer")
    return random.Random(f"{seed}:{record_id}").sample(pool, num_shots)


def _filled(record: Record, text: str) -> Parts:
    """Return the parts of a template's text with the record in it. What is filled in is never searched again."""
    place = IMAGE.search(text)
    if place is None:
        raise ValueError(f"record {record.id}: a conversation cannot be a solved example; use no shots")
    before, after = place[0].split("<img>{image}</img>")
    parts: list[object] = [_with_values(record, text[: place.start()])]
    for number, image in enumerate(record.images, 1):
        parts += [before.replace("{number}", str(number)), image, after]
    return _merged([*parts, _with_values(record, text[place.end() :])])


def _with_values(record: Record, text: str) -> str:
    """Return a template's text with values in the places of its placeholders."""
    return PLACEHOLDER.sub(lambda match: VALUES[match[1]](record), text)


def _merged(parts: Sequence[object]) -> Parts:
    """Return the parts without empty texts, and with texts that follow each other as one."""
    merged: list = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _answer_of(shot: Record) -> str:
    """Return the answer of a solved example; raise ValueError if it has none."""
    if not shot.answers:
        raise ValueError(f"training record {shot.id}: has no answer, so it cannot be a solved example")
    return shot.answers[0]


def _conversation(record: Record) -> tuple[tuple[tuple[Parts, str], ...], Parts]:
    """Return (earlier turns, parts of the last question), with an image of the record for each tag in them."""
    questions = [*(asked for asked, _ in record.history), record.question]
    num_tags = sum(len(TAG.findall(question)) for question in questions)
    if num_tags != len(record.images):
        raise ValueError(f"record {record.id}: has {num_tags} <img>..</img> and {len(record.images)} images")
    images = iter(record.images)
    asked = []
    for question in questions:
        pieces = TAG.split(question)  # text, reference, text, reference, .., text
        parts = [piece if number % 2 == 0 else next(images) for number, piece in enumerate(pieces)]
        asked.append(_merged(parts))
    answers = [said for _, said in record.history]
    return tuple(zip(asked[:-1], answers, strict=True)), asked[-1]
