"""Prompts as ids: texts and image spans, raw or in ChatML; and generated ids as texts."""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_vl.model.chat_qwen import MAX_WINDOW_SIZE, SYSTEM
from qwen_vl.model.tokenization_qwen import IMG_END, IMG_PAD, IMG_START, QWenTokenizer

from .records import Decoding, ImageSource, Parts, Prompt

FIRST_LETTER = "A"


class Encoded(NamedTuple):
    """The ids of a prompt and its images, whose features take the places inside of the spans."""

    ids: list[int]
    images: tuple[ImageSource, ...]  # one for each span, in order
    shared: int  # ids up to the end of the last image: what other prompts about the same images begin with, too


def encode(prompt: Prompt, tokenizer: QWenTokenizer, *, max_window_size: float = MAX_WINDOW_SIZE) -> Encoded:
    """Return a prompt as ids: a raw one as it is written, a chat as `make_context` writes it.

    An image is a span without a name, so that ids do not depend on paths. Control markers and image tags in a text
    are plain text; <ref>, <box> and the like are tokens. Of a chat the oldest turns are left out until it has fewer
    than `max_window_size` ids.
    """
    ids = encode_parts(prompt.parts, tokenizer) if prompt.style == "raw" else None
    images = images_of(prompt.parts)
    if ids is None:
        ids, images = _encode_chat(prompt, tokenizer, max_window_size)
    last = max((place for place, i in enumerate(ids) if i == tokenizer.img_end_id), default=-1) if images else -1
    return Encoded(ids, images, last + 1)


def encode_parts(parts: Parts, tokenizer: QWenTokenizer) -> list[int]:
    """Return the ids of texts and images, without any marker around them."""
    span = [tokenizer.img_start_id, *[tokenizer.img_pad_id] * tokenizer.image_span_tokens, tokenizer.img_end_id]
    tags = tokenizer.text_tags - {IMG_START, IMG_END, IMG_PAD}
    ids = []
    for part in parts:
        if isinstance(part, ImageSource):
            ids += span
        else:
            ids += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(part, allowed_special=tags))
    return ids


def images_of(parts: Parts) -> tuple[ImageSource, ...]:
    """Return the images among the parts, in order."""
    return tuple(part for part in parts if isinstance(part, ImageSource))


def _encode_chat(
    prompt: Prompt, tokenizer: QWenTokenizer, max_window_size: float
) -> tuple[list[int], tuple[ImageSource, ...]]:
    """Return ids and images of a chat; source: docs/checkpoint_format.md section 6."""
    newline = tokenizer.encode("\n")

    def turn(role: str, parts: Parts) -> list[int]:
        """Return the ids of one message with its markers."""
        content = encode_parts(parts, tokenizer)
        return [tokenizer.im_start_id, *tokenizer.encode(role), *newline, *content, tokenizer.im_end_id]

    opening = turn("system", (SYSTEM if prompt.system is None else prompt.system,))
    start = [tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline]
    ending, images = [*newline, *turn("user", prompt.parts), *newline, *start], images_of(prompt.parts)
    for asked, answered in reversed(prompt.history):
        earlier = [*newline, *turn("user", asked), *newline, *turn("assistant", (answered,))]
        if len(opening) + len(earlier) + len(ending) >= max_window_size:
            break
        ending, images = earlier + ending, images_of(asked) + images
    return opening + ending, images


def option_ids(tokenizer: QWenTokenizer, count: int) -> list[list[int]]:
    """Return the ids of one space and a letter, from A on, for each of `count` options; one id each as published.

    Raise ValueError for no option, or more than there are letters.
    """
    if not 1 <= count <= 26:
        raise ValueError(f"{count} options to rank; a record needs 1 to 26, as each has a letter")
    return [tokenizer.encode(f" {chr(ord(FIRST_LETTER) + number)}") for number in range(count)]


def end_ids(tokenizer: QWenTokenizer, decoding: Decoding) -> list[int]:
    """Return the ids at which a generated answer ends."""
    of_chat = [tokenizer.im_end_id, tokenizer.im_start_id]
    return [tokenizer.eod_id, *(of_chat if decoding.end == "im_end" else [])]


def decode(ids: Sequence[int], tokenizer: QWenTokenizer, decoding: Decoding) -> str:
    """Return the text of generated ids, without special tokens; those of boxes stay if `decoding` keeps them."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, keep_image_special=decoding.keep_boxes)
    return text.strip() if decoding.strip else text
