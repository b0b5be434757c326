"""The conversation as HTML. Every word of a user or a model is escaped; images are data URIs made here."""

import io
import re
from collections.abc import Sequence
from html import escape
from weakref import WeakKeyDictionary

from PIL import Image

from qwen_vl.files import data_uri
from qwen_vl.model.box_drawing_qwen import COLORS
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.grounding import Tag, find_tags
from qwen_vl.serving.session import AskedImage, Turn

SHOWN_SIDE = 768  # most pixels of an image's longer side on the page
LEAST_SIDE = 320  # smaller images are enlarged to it, so that boxes can be drawn on them
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SHAPES = re.compile(r"</?ref>|<(box|quad)>.*?(?:</\1>|$)", re.DOTALL)


_shown: WeakKeyDictionary[SentImage, str] = WeakKeyDictionary()  # as long as a conversation has the image


def shown(image: SentImage) -> str:
    """Return the address of an image for the page: a JPEG of its size there, as a data URI."""
    if (known := _shown.get(image)) is not None:
        return known
    longer = max(image.image.size)
    scale = min(max(longer, LEAST_SIDE), SHOWN_SIDE) / longer
    width, height = (max(1, round(side * scale)) for side in image.image.size)
    small = image.image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    _shown[image] = address = data_uri(file.getvalue(), "image/jpeg")
    return address


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
    pieces, images = [], list[AskedImage]()
    for index, turn in enumerate(turns):
        pieces.append(question_html(turn, images, words, index if editable else None))
        images += turn.images
        name = f'<div class="qv-name">{escape(turn.model)}</div>' if turn.model else ""
        answer = answer_html(turn.answer or "", images[-1] if images else None, len(images))
        button = _edit("answer", index, words) if editable else ""
        pieces.append(f'<div class="qv-it">{name}{answer}{button}</div>')
    return "".join(pieces)


def question_html(turn: Turn, earlier: Sequence[AskedImage], words: dict[str, str], index: int | None) -> str:
    """Return a question with its images and the boxes in it. index: for the edit button, None: no button.

    earlier: the images of the conversation before it. A box belongs to the image that is named right before it, as in
    `Picture 1 <box>`, otherwise to the latest.
    """
    images = [*earlier, *turn.images]
    tags = [tag for tag in find_tags(turn.text) if not tag.problem] if images else []
    colors = colors_of(tags)
    boxes: dict[int, list[tuple[Tag, str]]] = {n: [] for n in range(len(earlier) + 1, len(images) + 1)}
    for tag, color in zip(tags, colors, strict=True):
        boxes.setdefault(_number(turn.text[: tag.start], len(images)), []).append((tag, color))
    figures = [_figure(images[n - 1], n, drawn) for n, drawn in sorted(boxes.items())]
    strip = f'<div class="qv-strip">{"".join(figures)}</div>' if figures else ""
    button = "" if index is None else _edit("question", index, words)
    return f'<div class="qv-you">{strip}<div class="qv-text">{_colored(turn.text, tags, colors)}</div>{button}</div>'


def _number(before: str, num_images: int) -> int:
    """Return the number of the image that a text names at its end, the latest if it names none."""
    named = re.search(r"Picture (\d{1,4}) ?$", before)
    return int(named[1]) if named and 1 <= int(named[1]) <= num_images else num_images


def _figure(image: AskedImage, number: int, drawn: Sequence[tuple[Tag, str]]) -> str:
    """Return an image of a question with its name below."""
    boxes = overlay(image, number, [tag for tag, _ in drawn], [color for _, color in drawn])
    return f'<div>{boxes}<div class="qv-caption">Picture {number}</div></div>'


def growing_html(text: str, words: dict[str, str]) -> str:
    """Return an answer that is being written."""
    visible = growing(text)
    said = escape(visible) if visible else f'<i class="qv-wait">{escape(words["thinking"])}</i>'
    return f'<div class="qv-it qv-live"><div class="qv-text">{said}</div></div>'


def error_html(message: str, words: dict[str, str]) -> str:
    """Return an error for the user."""
    return f'<div class="qv-error" role="alert">{escape(words["error"])}: {escape(message)}</div>'


def board_html(images: Sequence[AskedImage], words: dict[str, str], num_turns: int = 0) -> str:
    """Return the images of the conversation, the latest one large, to draw a box on.

    num_turns: of the conversation. With another number the browser shows it anew, without the box that was drawn.
    """
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
    return f'<div class="qv-hint" data-turns="{num_turns}">{escape(words["board"])}</div>{canvases}{strip}'


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
