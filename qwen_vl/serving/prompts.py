"""From messages to the ids of a prompt, with a blank span for each image.

The twin of `make_context` in `qwen_vl/model/chat_qwen.py`, which reads images from tags in a text. Here a text never
names an image. tests/serving/test_serving_prompts.py compares the two.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_vl.model.chat_qwen import IMAGE_MARKS, SYSTEM, ChatML
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.conversation import Message, Part, SentImage


class EncodedPrompt(NamedTuple):
    """The ids of a prompt and the images of its spans, in order. A span is <img>, n_queries x <imgpad>, </img>."""

    ids: list[int]
    images: tuple[SentImage, ...]


def encode(
    tokenizer: QWenTokenizer,
    messages: Sequence[Message],
    *,
    default_system: bool = True,
    continues: bool = False,
    labeled: bool = True,
) -> EncodedPrompt:
    """Return the prompt of a conversation in ChatML, which ends where the answer begins.

    Images are labeled "Picture 1: ", "Picture 2: " .. over the whole conversation, and a newline follows each. Texts
    that follow each other are joined as they are. Tags of phrases and boxes are tokens; `<img>` and control markers in
    a text stay text. default_system: whether a conversation without a leading system message gets the default one.
    continues: whether the answer continues the last message, which must be an assistant's. labeled: whether images get
    their label and newline; without, the texts around them say what the model reads.
    Raise ValueError for no messages, and if there is nothing to continue.
    """
    if not messages:
        raise ValueError("no messages; give at least one")
    if continues and messages[-1].role != "assistant":
        raise ValueError(f"the last message is of the role {messages[-1].role}; only an assistant's can be continued")
    if default_system and messages[0].role != "system":
        messages = [Message("system", (SYSTEM,)), *messages]
    chatml = ChatML(tokenizer)
    ids: list[int] = []
    images: list[SentImage] = []
    for message in messages:
        first = len(images) + 1 if labeled else None
        ids += [*chatml.start(message.role), *_content(tokenizer, message.parts, first_number=first)]
        ids += [tokenizer.im_end_id, *chatml.newline]
        images += message.images
    if continues:
        del ids[len(ids) - len(chatml.newline) - 1 :]  # the end marker and the newline of the last turn
    else:
        ids += chatml.start("assistant")
    return EncodedPrompt(ids, tuple(images))


def _content(tokenizer: QWenTokenizer, parts: Sequence[Part], *, first_number: int | None) -> list[int]:
    """Return the ids of a message's parts. Text between two images is encoded in one piece.

    first_number: that of the label of the first image, None for images without labels.
    """
    blank = tokenizer.encode_message("<img></img>")[0]
    ids: list[int] = []
    text, number = "", first_number
    for part in parts:
        if isinstance(part, str):
            text += part
        elif number is None:
            ids, text = [*ids, *encode_text(tokenizer, text), *blank], ""
        else:
            ids, text = [*ids, *encode_text(tokenizer, f"{text}Picture {number}: "), *blank], "\n"
            number += 1
    return ids + encode_text(tokenizer, text)


def encode_text(tokenizer: QWenTokenizer, text: str) -> list[int]:
    """Return the ids of a text, in which tags of phrases and boxes are tokens, and all other markers are text."""
    return tokenizer.encode(text, allowed_special=tokenizer.text_tags - {*IMAGE_MARKS}, disallowed_special=())
