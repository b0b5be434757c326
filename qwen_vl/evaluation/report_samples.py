"""The worst samples of a run as HTML: image with boxes, question, answer, what was scored, accepted answers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_vl.data.boxes import to_pixels
from qwen_vl.evaluation.safe_text import for_html
from qwen_vl.evaluation.worst import boxes_of

IMAGE_TAG = re.compile(r"<img>.*?</img>", re.DOTALL)  # of a conversation; its reference may be a long data: URI
MAX_TEXT, MAX_SHORT = 2000, 300  # characters of a question or an answer, and of one of several accepted answers
MAX_ANSWERS, MAX_OPTIONS, MAX_BOXES, MAX_NUMBERS = 12, 26, 50, 8  # shown of each
SMALLEST_SIDE, LARGEST_SIDE = 160, 320  # pixels of the longer side of an image on the page
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEGEND = (
    '<p class="legend"><span class="key right"></span>right box <span class="key predicted"></span>predicted box</p>'
)


def cards(samples: Sequence[Mapping[str, Any]], limit: int) -> tuple[str, int]:
    """Return the HTML of samples with at most `limit` bytes, and how many samples that is.

    A sample that would be too large with its images is shown without them, and says so.
    """
    parts: list[str] = []
    room = limit
    for sample in samples:
        text = card(sample)
        if len(text.encode()) > room:
            text = card(sample, with_images=False)
        if len(text.encode()) > room:
            break
        room -= len(text.encode())
        parts.append(text)
    return "".join(parts), len(parts)


def card(sample: Mapping[str, Any], *, with_images: bool = True) -> str:
    """Return the HTML of one sample."""
    answer = sample["answer"]
    lines = [
        ("question", _question(str(sample.get("question", "")))),
        ("options", _options(sample)),
        ("answer", '<i class="none">nothing</i>' if answer in (None, "") else for_html(answer, MAX_TEXT)),
        ("scored", "" if sample.get("scored") in (None, answer) else for_html(sample["scored"], MAX_TEXT)),
        ("accepted", _accepted(sample.get("answers", ()))),
        ("numbers", _numbers(sample["extra"])),
    ]
    said = "".join(f'<dt>{name}</dt><dd dir="auto">{text}</dd>' for name, text in lines if text)
    badges = f'<span class="badge">score {sample["score"]:.4g}</span>'
    badges += '<span class="badge bad">unmatched</span>' if sample["unmatched"] else ""
    badges += '<span class="badge bad">cut off</span>' if sample.get("finish") == "length" else ""
    images = _images(sample) if with_images else '<p class="failed">image left out: the page would become too large</p>'
    title = f"<h4><bdi>{for_html(sample['id'], MAX_SHORT)}</bdi> {badges}</h4>"
    return f'<article>{title}<div class="both"><div class="images">{images}</div><dl>{said}</dl></div></article>\n'


def _question(text: str) -> str:
    return for_html(IMAGE_TAG.sub("<img>..</img>", text), MAX_TEXT)


def _options(sample: Mapping[str, Any]) -> str:
    """Return the options with their letters, and the losses by which they were ranked."""
    options, losses = sample.get("options") or (), sample["extra"].get("losses") or ()
    lines = []
    for place, option in enumerate(options[:MAX_OPTIONS]):
        loss = f" (loss {losses[place]:.4f})" if place < len(losses) else ""
        lines.append(f"{LETTERS[place]}. {for_html(option, MAX_SHORT)}{loss}")
    return "<br>".join(lines)


def _accepted(answers: Sequence[str]) -> str:
    counted = Counter(map(str, answers))  # ten people often say the same
    lines = [
        for_html(answer, MAX_SHORT) + (f" &times; {count}" if count > 1 else "")
        for answer, count in list(counted.items())[:MAX_ANSWERS]
    ]
    more = len(counted) - len(lines)
    return "<br>".join([*lines, *([f"and {more:,} more"] if more > 0 else [])])


def _numbers(extra: Mapping[str, Any]) -> str:
    """Return what else was measured of the sample, such as its IoU."""
    found = [(name, value) for name, value in extra.items() if isinstance(value, int | float)][:MAX_NUMBERS]
    return ", ".join(f"{for_html(name, MAX_SHORT)} {value:.4g}" for name, value in found)


def _images(sample: Mapping[str, Any]) -> str:
    """Return the images of a sample, the boxes on the last one, which the question is about."""
    shown = sample.get("shown", ())
    parts = [f"<p>{sample['not_shown']:,} earlier images are not shown</p>"] if sample.get("not_shown") else []
    for number, image in enumerate(shown, start=1):
        is_last = number == len(shown)
        parts.append(_figure(image, _boxes(sample, image) if is_last else ""))
    return "".join(parts) or '<p class="failed">no image</p>'


def _figure(image: Mapping[str, Any], boxes: str) -> str:
    if "error" in image:
        return f'<p class="failed">no image: {for_html(image["error"], MAX_SHORT)}</p>'
    longest = max(image["width"], image["height"])
    scale = min(LARGEST_SIDE, max(SMALLEST_SIDE, longest)) / longest
    width, height = (max(1, round(side * scale)) for side in (image["width"], image["height"]))
    size = f'width="{width}" height="{height}"'
    source = f"data:image/jpeg;base64,{for_html(image['jpeg'])}"
    frame = f'<div class="frame"><img src="{source}" {size} alt="image of the sample">{boxes}</div>'
    return frame + (LEGEND if boxes else "")


def _boxes(sample: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Return the boxes as SVG over an image, in its pixels; "" if the sample has none or its image is not there."""
    found = boxes_of(sample)
    if found is None or "error" in image:
        return ""
    width, height = image["width"], image["height"]
    shapes = []
    for name in ("right", "predicted"):
        for box in found[0].get(name, ())[:MAX_BOXES]:
            x1, y1, x2, y2 = to_pixels([int(step) for step in box], width, height) if found[1] else box
            xs, ys = (
                sorted(min(max(v, 0), end) for v in pair) for pair, end in (((x1, x2), width), ((y1, y2), height))
            )
            place = f'x="{xs[0]:.1f}" y="{ys[0]:.1f}" width="{xs[1] - xs[0]:.1f}" height="{ys[1] - ys[0]:.1f}"'
            shapes.append(f'<rect class="halo" {place}/><rect class="{name}" {place}/>')
    if not shapes:
        return ""
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
