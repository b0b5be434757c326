"""Overlays: which box belongs to which image of a conversation, in which color, and the images with their boxes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from qwen_vl.data import image_files
from qwen_vl.data.boxes import numbers, segments
from qwen_vl.data.validation import GRID, SHAPES
from qwen_vl.model.box_drawing_qwen import COLORS, draw_boxes, draw_label, load_font
from qwen_vl.model.download_qwen import ImageError

LONGEST_SIDE = 480  # pixels of an image on a page
SHORTEST_LONG_SIDE = 320  # images smaller than this are enlarged, or lines and labels would cover them


@dataclass
class Mark:
    """A piece of a turn as a page shows it: a `boxes.Segment` with the color of its box on the image."""

    kind: str
    text: str
    image: int | None
    color: str | None


class Shape(NamedTuple):
    """A box or quadrilateral to be drawn on an image."""

    kind: str
    numbers: tuple[int, ...]
    phrase: str | None  # written next to it
    color: str


MarkedTurn = tuple[str, list[Mark]]  # (role, pieces)


def mark(turns: Sequence[Mapping[str, Any]]) -> tuple[list[MarkedTurn], dict[int, list[Shape]]]:
    """Return the turns as a page shows them, and the Shapes of each image; images count from 0.

    turns: [{"from", "value"}, ..].
    """
    shown, colors = [], _Colors()
    shapes: dict[int, list[Shape]] = {}
    for turn, pieces in zip(turns, segments(turns), strict=True):
        marks, phrase = [], None
        for piece, follower in zip(pieces, [*(piece.kind for piece in pieces[1:]), "text"], strict=False):
            color = None
            if piece.kind == "img" and piece.image is not None:
                shapes[piece.image] = []
            elif piece.kind == "ref" and follower in SHAPES and piece.image is not None:
                phrase, color = piece.text, colors.next(follower, piece.image)
            elif piece.kind in SHAPES and piece.image is not None:
                color = colors.current(piece.kind, piece.image)
                shapes[piece.image].append(Shape(piece.kind, numbers(piece.text), phrase, color))
                phrase = None
            marks.append(Mark(piece.kind, piece.text, piece.image, color))
        shown.append((turn["from"], marks))
    return shown, shapes


class _Colors:
    """The color of each phrase: for boxes as in `draw_boxes`, for quadrilaterals from the end of the list."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def next(self, kind: str, image: int) -> str:
        self._counts[kind, image] += 1
        return self.current(kind, image)

    def current(self, kind: str, image: int) -> str:
        index = max(0, self._counts[kind, image] - 1) % len(COLORS)
        return COLORS[index if kind == "box" else -1 - index]


def draw_on(reference: str, shapes: Sequence[Shape], folders: Sequence[str]) -> Image.Image | str:
    """Return the image with its boxes, at the size of the page, or the error as text if it cannot be opened."""
    try:
        image = image_files.read(reference, folders)
    except ImageError as error:
        return str(error)
    longest = max(image.size)
    wanted = min(LONGEST_SIDE, max(SHORTEST_LONG_SIDE, longest))
    size = tuple(max(1, round(side * wanted / longest)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS if wanted < longest else Image.Resampling.NEAREST)
    boxes = [
        {"box": shape.numbers} | ({} if shape.phrase is None else {"ref": shape.phrase})
        for shape in shapes
        if shape.kind == "box"
    ]
    return _draw_quads(draw_boxes(image, boxes), [shape for shape in shapes if shape.kind == "quad"])


def _draw_quads(image: Image.Image, quads: Sequence[Shape]) -> Image.Image:
    """Draw quadrilaterals on an image in the style of `draw_boxes`, and return it."""
    draw, side = ImageDraw.Draw(image), min(image.size)
    width, height = image.size
    for quad in quads:
        xs, ys = [x * width / GRID for x in quad.numbers[::2]], [y * height / GRID for y in quad.numbers[1::2]]
        draw.polygon(list(zip(xs, ys, strict=True)), outline=quad.color, width=max(2, round(side / 150)))
        if quad.phrase:
            place = (min(xs), min(ys), max(xs), max(ys))
            draw_label(draw, place, quad.phrase, quad.color, load_font(max(11, round(side / 24))), image.size)
    return image
