"""The conversation as HTML. Every word of a user or a model is escaped; images are data URIs made here."""

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape

from PIL import Image

from qwen_vl.files import data_uri
from qwen_vl.model.box_drawing_qwen import COLORS
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.grounding import Tag, find_tags
from qwen_vl.serving.session import AskedImage, Turn

SHOWN_SIDE = 768  # pixels of an image on the page
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SHAPES = re.compile(r"</?ref>|<(box|quad)>.*?(?:</\1>|$)", re.DOTALL)


@lru_cache(maxsize=64)
def shown(image: SentImage) -> str:
    """Return the address of an image for the page: a small JPEG as a data URI."""
    small = image.image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return data_uri(file.getvalue(), "image/jpeg")


def growing(text: str) -> str:
    """Return what to show of an unfinished answer: without the tags of boxes, also a tag that has only begun."""
    start = text.rfind("<")
    if start >= 0 and any(tag.startswith(text[start:]) for tag in TAGS):
        text = text[:start]
    return SHAPES.sub("", text)


def answer_html(text: str, image: AskedImage | None, number: int) -> str:
    """Return a finished answer: its text, and the latest image with its boxes drawn on it.

    Without an image or a valid box the raw text stays, as does every malformed box.
    """
    tags = [tag for tag in find_tags(text) if not tag.problem]
    if image is None or not tags:
        return f'<div class="qv-text">{escape(text)}</div>'
    colors = colors_of(tags)
    return f'<div class="qv-text">{_colored(text, tags, colors)}</div>' + overlay(image, number, tags, colors)


def colors_of(tags: Sequence[Tag]) -> list[str]:
    """Return the color of each box: one for each phrase, the same for boxes that share it."""
    labels: list[str | None] = []
    for tag in tags:
        if tag.label not in labels:
            labels.append(tag.label)
    return [COLORS[labels.index(tag.label) % len(COLORS)] for tag in tags]


def _colored(text: str, tags: Sequence[Tag], colors: Sequence[str]) -> str:
    """Return the text without the tags of boxes, and with each phrase in the color of its box."""
    pieces, position = [], 0
    for tag, color in zip(tags, colors, strict=True):
        before, phrase = text[position : tag.start], ""
        start = before.rfind("<ref>") if before.endswith("</ref>") else -1
        if start >= 0:
            content = before[start + len("<ref>") : -len("</ref>")]
            coordinates = escape(text[tag.start : tag.end])
            phrase = f'<b style="color:{color}" title="{coordinates}">{escape(content)}</b>'
            before = before[:start]
        elif not (tag.label and position and not before):  # further boxes of a phrase add nothing to the text
            phrase = f'<b style="color:{color}">▢</b>'
        pieces.append(escape(before) + phrase)
        position = tag.end
    return "".join(pieces) + escape(text[position:])


def overlay(image: AskedImage, number: int, tags: Sequence[Tag], colors: Sequence[str]) -> str:
    """Return an image with boxes. Pointing at one shows its phrase; small ones lie above large ones."""
    drawn = sorted(zip(tags, colors, strict=True), key=lambda pair: -_area(_corners(pair[0])))
    shapes = "".join(_shape(tag, color) for tag, color in drawn)
    return f'<figure class="qv-boxes"><img src="{shown(image.sent())}" alt="Picture {number}">{shapes}</figure>'


def _corners(tag: Tag) -> tuple[int, int, int, int]:
    xs, ys = tag.numbers[::2], tag.numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _area(corners: tuple[int, int, int, int]) -> int:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _shape(tag: Tag, color: str) -> str:
    """Return one box or quadrilateral over the image, in thousandths of its sides."""
    left, top, right, bottom = _corners(tag)
    width, height = max(right - left, 1), max(bottom - top, 1)
    place = f"left:{left / 10}%;top:{top / 10}%;width:{width / 10}%;height:{height / 10}%;--c:{color}"
    inside = ""
    if tag.kind == "quad":
        pairs = zip(tag.numbers[::2], tag.numbers[1::2], strict=True)
        points = " ".join(f"{(x - left) * 100 / width:.2f},{(y - top) * 100 / height:.2f}" for x, y in pairs)
        inside = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none"><polygon points="{points}"/></svg>'
    label = escape(tag.label or "")
    where = "qv-inside" if top < 70 else "qv-above"
    side = "qv-right" if left > 600 else "qv-left"
    name = f'<span class="qv-label {where} {side}">{label}</span>' if label else ""
    return f'<div class="qv-shape qv-{tag.kind}" style="{place}" title="{label}">{inside}{name}</div>'


def transcript_html(turns: Sequence[Turn], words: dict[str, str], *, editable: bool = True) -> str:
    """Return all turns as HTML."""
    if not turns:
        return f'<div class="qv-empty">{escape(words["empty"])}</div>'
    pieces, number, latest = [], 0, None
    for index, turn in enumerate(turns):
        pieces.append(question_html(turn, number, words, index if editable else None))
        number += len(turn.images)
        latest = turn.images[-1] if turn.images else latest
        button = _edit("answer", index, words) if editable else ""
        pieces.append(f'<div class="qv-it">{answer_html(turn.answer or "", latest, number)}{button}</div>')
    return "".join(pieces)


def question_html(turn: Turn, number: int, words: dict[str, str], index: int | None) -> str:
    """Return a question with its images; `number` images came before. index: for the edit button, None: no button."""
    images = "".join(
        f'<figure><img src="{shown(image.sent())}" alt="Picture {n}"><figcaption>Picture {n}</figcaption></figure>'
        for n, image in enumerate(turn.images, start=number + 1)
    )
    strip = f'<div class="qv-strip">{images}</div>' if images else ""
    button = "" if index is None else _edit("question", index, words)
    return f'<div class="qv-you">{strip}<div class="qv-text">{escape(turn.text)}</div>{button}</div>'


def growing_html(turn: Turn, number: int, text: str, words: dict[str, str]) -> str:
    """Return a question and the answer that is being written to it."""
    visible = growing(text)
    said = escape(visible) if visible else f'<i class="qv-wait">{escape(words["thinking"])}</i>'
    answer = f'<div class="qv-it qv-live"><div class="qv-text">{said}</div></div>'
    return question_html(turn, number, words, None) + answer


def error_html(message: str, words: dict[str, str]) -> str:
    """Return an error for the user."""
    return f'<div class="qv-error" role="alert">{escape(words["error"])}: {escape(message)}</div>'


def board_html(images: Sequence[AskedImage], words: dict[str, str]) -> str:
    """Return the images of the conversation, the latest one large, to draw a box on."""
    if not images:
        return f'<div class="qv-hint">{escape(words["no_images"])}</div>'
    last = len(images)
    addresses = [shown(image.sent()) for image in images]
    canvases = "".join(
        f'<div class="qv-canvas" data-number="{n}" {"" if n == last else "hidden"}>'
        f'<img src="{address}" alt="Picture {n}" draggable="false"></div>'
        for n, address in enumerate(addresses, start=1)
    )
    thumbs = "".join(
        f'<button class="qv-thumb" data-show="{n}"><img src="{address}" alt=""><span>Picture {n}</span></button>'
        for n, address in enumerate(addresses, start=1)
    )
    strip = f'<div class="qv-thumbs">{thumbs}</div>' if last > 1 else ""
    return f'<div class="qv-hint">{escape(words["board"])}</div>{canvases}{strip}'


def _edit(what: str, index: int, words: dict[str, str]) -> str:
    name = escape(words["edit"])
    return (
        f'<button class="qv-edit" data-do="{what}" data-index="{index}" title="{name}" aria-label="{name}">✎</button>'
    )


def examples_html(examples: Sequence[tuple[str, str, str]], language: str) -> str:
    """Return a button for each example (path of its image or "", question in English, in Chinese)."""
    buttons = []
    for index, (path, english, chinese) in enumerate(examples):
        text = escape(chinese if language == "zh" else english)
        image = f'<img src="{shown(SentImage.of(read_image(path)))}" alt="">' if path else ""
        buttons.append(f'<button class="qv-example" data-do="example" data-index="{index}">{image}{text}</button>')
    return f'<div class="qv-examples">{"".join(buttons)}</div>'
