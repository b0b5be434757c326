"""The preview as one PNG, drawn with Pillow: the content of the HTML page, for machines without a browser."""

import io
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageDraw

from qwen_vl.model.box_drawing_qwen import FIRST_CJK, load_font, warn_of_missing_characters

from .html_page import badges, shortened, visible
from .overlays import Mark
from .preview import Page, Preview, Token

WIDTH, MARGIN, PADDING = 1200, 32, 20
IMAGE_WIDTH = 480
MAX_HEIGHT = 60_000  # pixels; Pillow draws no more than 65,535
INK, QUIET, RED, PAPER = "#1d2430", "#5a6472", "#c93b3b", "#ffffff"
TARGET, TARGET_INK, IGNORED, IGNORED_INK = "#bfe8c9", "#0d3b1c", "#eef0f3", "#6d7684"
CUT_INK, LINE, BACKGROUND = "#a9b0bb", "#dde1e7", "#f6f7f9"
ROLE_PAPER = {"user": "#f2f4f7", "assistant": "#e9f5ec", "system": PAPER}
# Where a line may end: between ideographs, and around white space.
PARTS = re.compile(r"\n|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+|[^\S\n]+")

Operation = Callable[[Image.Image, ImageDraw.ImageDraw], None]  # draws on the finished sheet


def render(page: Page) -> bytes:
    """Return the page as a PNG. Raise ValueError if it would be too high to draw."""
    _warn(page)
    sheet = _Sheet()
    sheet.text(visible(f"Preview of {page.file}"), 22)
    sheet.text(visible(f"Tokens of {page.model}"), 14, QUIET)
    sheet.text("   ".join(f"{what}: {number}" for what, number in page.totals()), 15)
    legend = [("a target", TARGET_INK, TARGET), ("ignored", IGNORED_INK, IGNORED), ("cut by the limit", CUT_INK, PAPER)]
    sheet.flow([_Run(text, ink, paper, cut=ink == CUT_INK) for text, ink, paper in legend], 15, gap=12)
    for sample in page.samples:
        sheet.y += PADDING
        _sample(sheet, sample)
        if sheet.y > MAX_HEIGHT:
            raise ValueError(f"the page would be over {MAX_HEIGHT} pixels high; use a smaller --num, or --format html")
    stream = io.BytesIO()
    sheet.drawing().save(stream, "png")
    return stream.getvalue()


def _warn(page: Page) -> None:
    """Warn once if no font of the system has the characters of the turns."""
    texts = (mark.text for sample in page.samples for _, marks in sample.turns for mark in marks)
    foreign = next((text for text in texts if any(character >= FIRST_CJK for character in text)), "")
    warn_of_missing_characters("".join(character for character in foreign if character >= FIRST_CJK)[:10])


class _Run:
    """A text in one color on one background, which may be broken over lines."""

    def __init__(
        self, text: str, ink: str = INK, paper: str | None = None, *, cut: bool = False, whole: bool = False
    ) -> None:
        self.text, self.ink, self.paper, self.cut = text, ink, paper, cut
        self.parts = [text] if whole else PARTS.findall(text)


class _Sheet:
    """A list of drawing operations, top to bottom; the height is known only at the end. `y`: the current position."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self.y, self._draw = MARGIN, ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def drawing(self) -> Image.Image:
        """Draw the finished sheet and return it."""
        drawing = Image.new("RGB", (WIDTH, self.y + MARGIN), BACKGROUND)
        draw = ImageDraw.Draw(drawing)
        for operation in self._operations:
            operation(drawing, draw)
        return drawing

    def text(self, text: str, size: int, ink: str = INK, **place: float) -> None:
        """Set a paragraph. place: `left`, `right` and `gap` of `flow`."""
        self.flow([_Run(text, ink)], size, **place)

    @contextmanager
    def card(self, left: int, right: int, fill: str, outline: str | None = None) -> Iterator[None]:
        """Draw a rounded card from `left` to `right` behind everything that the `with` block draws."""
        top, place = self.y, len(self._operations)
        self.y += PADDING // 2
        yield
        self.y += PADDING // 2
        box = (left, top, right, self.y)
        self._operations.insert(place, lambda _, draw: draw.rounded_rectangle(box, 8, fill=fill, outline=outline))

    def paste(self, image: Image.Image, x: int, y: int) -> None:
        self._operations.append(lambda drawing, _: drawing.paste(image, (x, y)))

    def flow(
        self, runs: Sequence[_Run], size: int, *, left: float = MARGIN, right: float = WIDTH - MARGIN, gap: float = 0
    ) -> None:
        """Set runs one after another in lines between `left` and `right`, and move `y` below them."""
        font, step = load_font(size), round(size * 1.65)
        x, started = left, False
        for run in runs:
            for part in run.parts:
                if part == "\n":
                    x, self.y, started = left, self.y + step, False
                    continue
                for piece in self._fitting(part, font, right - left):
                    width = self._draw.textlength(piece, font=font)
                    if started and x + width > right:
                        x, self.y = left, self.y + step
                        piece = piece if run.paper else piece.lstrip()
                        width = self._draw.textlength(piece, font=font)
                    self._piece(piece, run, font, (x, self.y, x + width, self.y + step))
                    x, started = x + width, True
            x += gap * started
        self.y += step * started

    def _fitting(self, part: str, font: Any, width: float) -> Iterator[str]:
        """Yield the part itself, or pieces of it if it is wider than a whole line."""
        while len(part) > 1 and self._draw.textlength(part, font=font) > width:

            def width_of(length: int, text: str = part) -> float:
                return self._draw.textlength(text[:length], font=font)

            end = max(1, bisect(range(1, len(part) + 1), width, key=width_of))
            yield part[:end]
            part = part[end:]
        yield part

    def _piece(self, piece: str, run: _Run, font: Any, box: tuple[float, float, float, float]) -> None:
        left, top, right, bottom = box

        def draw_piece(drawing: Image.Image, draw: ImageDraw.ImageDraw) -> None:
            if run.paper:
                draw.rectangle((left, top + 2, right - 1, bottom - 2), fill=run.paper)
            draw.text((left, top + font.size // 4), piece, font=font, fill=run.ink)
            if run.cut:
                draw.line((left, (top + bottom) // 2, right, (top + bottom) // 2), fill=run.ink)

        self._operations.append(draw_piece)


def _sample(sheet: _Sheet, sample: Preview) -> None:
    """Draw a card with the name, images on the left, turns next to them, and all tokens below."""
    left, right = MARGIN + PADDING, WIDTH - MARGIN - PADDING
    with sheet.card(MARGIN, WIDTH - MARGIN, PAPER, RED if sample.status == "dropped" else LINE):
        runs = [_Run(visible(sample.id))] + [_Run(text, RED if kind else QUIET) for text, kind in badges(sample)]
        sheet.flow(runs, 16, left=left, right=right, gap=16)
        top, beside = sheet.y, left + (IMAGE_WIDTH + PADDING if sample.images else 0)
        references = [mark.text for _, marks in sample.turns for mark in marks if mark.kind == "img"]
        for number, (image, reference) in enumerate(zip(sample.images, references, strict=True), start=1):
            _image(sheet, number, image, reference, left)
        bottom, sheet.y = sheet.y, top
        for role, marks in sample.turns:
            with sheet.card(beside, right, ROLE_PAPER[role]):
                place = {"left": beside + PADDING // 2, "right": right - PADDING // 2}
                sheet.text(role, 12, QUIET, **place)
                sheet.flow([_mark(mark) for mark in marks], 15, **place)
            sheet.y += 6
        sheet.y = max(sheet.y, bottom) + 6
        with sheet.card(left, right, PAPER, LINE):
            runs = [_token(token) for token in sample.tokens]
            sheet.flow(runs, 13, left=left + PADDING // 2, right=right - PADDING // 2, gap=2)


def _image(sheet: _Sheet, number: int, image: Image.Image | str, reference: str, left: int) -> None:
    """Draw an image with its caption. image: the image, or the text of the error if it cannot be opened."""
    place = {"left": left, "right": left + IMAGE_WIDTH}
    if isinstance(image, str):
        sheet.text(visible(image), 13, RED, **place)
    else:
        sheet.paste(image, left, sheet.y)
        sheet.y += image.height + 2
    sheet.text(visible(f"Picture {number}: {shortened(reference)}"), 12, QUIET, **place)
    sheet.y += 8


def _mark(mark: Mark) -> _Run:
    if mark.kind == "img":
        return _Run(visible(f" {shortened(mark.text)} "), INK, LINE, whole=True)
    if mark.kind == "text":
        return _Run(visible(mark.text))
    return _Run(visible(f"[{mark.text}]"), mark.color or QUIET)


def _token(token: Token) -> _Run:
    text = visible(token.text).replace("\n", "\u21b5\n")
    if token.kind == "image":
        return _Run(f" {text} \u00d7 {token.num_positions} ", INK, LINE, cut=not token.kept, whole=True)
    if not token.kept:
        return _Run(text, CUT_INK, cut=True)
    return _Run(text, *((TARGET_INK, TARGET) if token.num_targets else (IGNORED_INK, IGNORED)))
