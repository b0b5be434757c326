"""The preview as one self-contained HTML page: no scripts, no requests, images included."""

import io
from collections.abc import Sequence
from html import escape
from string import Template

from PIL import Image

from qwen_vl.files import data_uri

from .overlays import Mark
from .preview import Page, Preview, Token

SHOWN_REFERENCE = 60  # characters of an image reference on the page; a data URI has thousands

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1280px; background: #f6f7f9; color: #1d2430;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", "WenQuanYi Micro Hei", "Noto Sans CJK SC", sans-serif; }
h1 { margin: 0 0 4px; font-size: 22px; overflow-wrap: anywhere; }
.from { margin: 0 0 16px; color: #5a6472; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 12px; }
dl div { padding: 6px 14px; background: #fff; border: 1px solid #dde1e7; border-radius: 8px; }
dt { color: #5a6472; font-size: 12px; }
dd { margin: 0; font-weight: 600; }

.sample { margin: 0 0 24px; padding: 16px 20px; background: #fff; border: 1px solid #dde1e7; border-radius: 10px; }
.sample.dropped { border-color: #c93b3b; }
h2 { margin: 0 0 12px; font-size: 16px; overflow-wrap: anywhere; }
.badge { display: inline-block; margin-left: 6px; padding: 1px 8px; border-radius: 10px; background: #eceff3;
  color: #3c4554; font-size: 12px; font-weight: 400; }
.badge.trimmed, .badge.dropped { background: #c93b3b; color: #fff; }
.both { display: flex; flex-wrap: wrap; gap: 20px; }
.images { flex: 0 1 auto; display: flex; flex-direction: column; gap: 12px; max-width: 480px; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; border-radius: 4px; }
figcaption { color: #5a6472; font-size: 12px; overflow-wrap: anywhere; }
.failed { padding: 12px; border: 1px dashed #c93b3b; color: #a02c2c; overflow-wrap: anywhere; }
.turns { flex: 1 1 420px; min-width: 0; }
.turn { margin: 0 0 8px; padding: 8px 12px; border-radius: 8px; background: #f2f4f7;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.turn.assistant { background: #e9f5ec; }
.turn.system { color: #5a6472; font-size: 13px; }
.role { display: block; color: #5a6472; font-size: 12px; }
.chip { padding: 0 6px; border-radius: 4px; background: #dde1e7; }
.shape { padding: 0 4px; border: 1px solid; border-radius: 4px; font-size: 13px; }
.tokens { margin: 12px 0 0; padding: 10px 12px; border: 1px solid #dde1e7; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.9 ui-monospace, "DejaVu Sans Mono", "WenQuanYi Micro Hei Mono", "Noto Sans Mono CJK SC", monospace; }
.legend { margin: 0 0 20px; background: #fff; }
.t { padding: 2px 0; border-radius: 2px; border-left: 1px solid #fff; background: #eef0f3; color: #6d7684; }
.t.y { background: #bfe8c9; color: #0d3b1c; border-bottom: 2px solid #2b9348; }
.t.s { font-weight: 700; }
.t.p { padding: 2px 8px; border: 1px solid #9aa3b0; }
.t.cut { background: #fff; color: #a9b0bb; border-bottom: 0; text-decoration: line-through; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="from">$source</p>
<dl>$totals</dl>
<p class="legend tokens">$legend</p>
$samples
</body>
</html>
""")
LEGEND = (
    '<span class="t y">a target</span> the model learns to write it   '
    '<span class="t">ignored</span> it is only read   '
    '<span class="t s">&lt;special&gt;</span> a token of the model   '
    '<span class="t p">Picture 1</span> a whole image span   '
    '<span class="t cut">cut</span> after the limit   '
    "Point at a token to see its id."
)


def render(page: Page) -> bytes:
    """Return the page as HTML in UTF-8."""
    totals = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(number)}</dd></div>" for what, number in page.totals())
    text = PAGE.substitute(
        title=clean(f"Preview of {page.file}"),
        source=clean(f"Tokens of {page.model}"),
        totals=totals,
        legend=LEGEND,
        samples="\n".join(_sample(sample) for sample in page.samples),
    )
    return text.encode("utf-8")


def clean(text: str) -> str:
    """Return text for HTML: escaped, with visible symbols for control characters, which HTML forbids."""
    return escape(visible(text))


def visible(text: str) -> str:
    """Return the text with a symbol for each control character but the newline, and with lone surrogates escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(chr(0x2400 + ord(c)) if c < " " and c != "\n" else "\u2421" if c == "\x7f" else c for c in text)


def shortened(reference: str) -> str:
    """Return an image reference, cut after SHOWN_REFERENCE characters."""
    more = len(reference) - SHOWN_REFERENCE
    return reference if more <= 0 else f"{reference[:SHOWN_REFERENCE]}.. ({more} more characters)"


def badges(sample: Preview) -> list[tuple[str, str]]:
    """Return [(text, kind), ..]: the badges next to the name of a sample."""
    length = f"{sample.length:,} tokens"
    if sample.status == "trimmed":
        length = f"{sample.kept_length:,} of {length}"
    found = [(length, ""), (f"{sample.num_targets:,} targets", "")]
    found += [(f"weight {sample.weight:g}", "")] * (sample.weight != 1)
    return found + [(sample.status, sample.status)] * (sample.status != "whole")


def _sample(sample: Preview) -> str:
    marks = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for text, kind in badges(sample))
    references = [mark.text for _, marks_ in sample.turns for mark in marks_ if mark.kind == "img"]
    images = "".join(
        _image(number, image, reference)
        for number, (image, reference) in enumerate(zip(sample.images, references, strict=True), start=1)
    )
    turns = "".join(_turn(role, marks_) for role, marks_ in sample.turns)
    tokens = "".join(_token(token) for token in sample.tokens)
    column = f'<div class="images">{images}</div>' if images else ""
    return (
        f'<section class="sample {sample.status}"><h2>{clean(sample.id)}{marks}</h2>'
        f'<div class="both">{column}<div class="turns">{turns}</div></div><div class="tokens">{tokens}</div></section>'
    )


def _image(number: int, image: Image.Image | str, reference: str) -> str:
    """Return an image with its caption; image: the image, or the text of the error if it cannot be opened."""
    caption = f"<figcaption>Picture {number}: {clean(shortened(reference))}</figcaption>"
    if isinstance(image, str):
        return f'<figure><div class="failed">{clean(image)}</div>{caption}</figure>'
    size = f'width="{image.width}" height="{image.height}"'
    return f'<figure><img src="{_smaller_uri(image)}" {size} alt="Picture {number}">{caption}</figure>'


def _smaller_uri(image: Image.Image) -> str:
    """Return the image as a data: URI, in JPEG or PNG, whichever is smaller."""
    candidates = []
    for form, options in (("jpeg", {"quality": 88}), ("png", {})):
        stream = io.BytesIO()
        image.save(stream, form, **options)
        candidates.append((stream.tell(), form, stream.getvalue()))
    _, form, content = min(candidates)
    return data_uri(content, f"image/{form}")


def _turn(role: str, marks: Sequence[Mark]) -> str:
    text = "".join(_mark(mark) for mark in marks)
    return f'<div class="turn {role}"><span class="role">{role}</span>{text}</div>'


def _mark(mark: Mark) -> str:
    if mark.kind == "text":
        return clean(mark.text)
    if mark.kind == "img":
        assert mark.image is not None, "an img names its image"
        return f'<span class="chip" title="image {mark.image + 1}">{clean(shortened(mark.text))}</span>'
    color = mark.color or "#5a6472"
    return f'<span class="shape {mark.kind}" style="color: {color}">{clean(mark.text)}</span>'


def _token(token: Token) -> str:
    classes = ["t"]
    classes += ["y"] * (token.num_targets > 0 and token.kind != "image")
    classes += {"special": ["s"], "image": ["p"], "text": []}[token.kind]
    classes += ["cut"] * (not token.kept)
    title, text = f"id {token.id}", clean(token.text).replace("\n", "\u21b5\n")
    if token.kind == "image":
        title = f"{token.num_positions} positions, {token.num_targets} targets"
        text = f"{text} &times; {token.num_positions}"
    return f'<span class="{" ".join(classes)}" title="{title}">{text}</span>'
