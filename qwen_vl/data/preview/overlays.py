"""Which box belongs to which picture of a conversation, in which colour, and the pictures with them drawn on."""

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from PIL import Image, ImageDraw

from qwen_vl.data.boxes import numbers, segments
from qwen_vl.data.validation import GRID, SHAPES
from qwen_vl.model.box_drawing_qwen import COLORS, draw_boxes, draw_label, load_font
from qwen_vl.model.download_qwen import PictureError
from qwen_vl.model.image_loading_qwen import open_picture

LONGEST_SIDE = 480  # pixels of a picture on a page
SHORTEST_LONG_SIDE = 320  # pictures smaller than this are enlarged, or lines and labels would cover them


@dataclass
class Mark:
    """A piece of a turn as a page shows it: a `boxes.Segment` with the colour that its box has on the picture."""

    kind: str
    text: str
    picture: int | None
    color: str | None


class Shape(NamedTuple):
    """A box or quadrilateral to be drawn on a picture."""

    kind: str
    numbers: tuple
    phrase: str | None  # written beside it
    color: str


def mark(turns):
    """([(role, [Mark, ..]), ..], {picture: [Shape, ..]}): turns as a page shows them, and what each picture shows.

    turns: [{"from", "value"}, ..]; pictures count from 0.
    """
    shown, shapes, colors = [], {}, _Colors()
    for turn, pieces in zip(turns, segments(turns), strict=True):
        marks, phrase = [], None
        for piece, follower in zip_longest(pieces, [piece.kind for piece in pieces[1:]], fillvalue="text"):
            color = None
            if piece.kind == "img":
                shapes[piece.picture] = []
            elif piece.kind == "ref" and follower in SHAPES and piece.picture is not None:
                phrase, color = piece.text, colors.next(follower, piece.picture)
            elif piece.kind in SHAPES and piece.picture is not None:
                color = colors.current(piece.kind, piece.picture)
                shapes[piece.picture].append(Shape(piece.kind, numbers(piece.text), phrase, color))
                phrase = None
            marks.append(Mark(piece.kind, piece.text, piece.picture, color))
        shown.append((turn["from"], marks))
    return shown, shapes


class _Colors:
    """The colour of each phrase: boxes as `draw_boxes` counts them, quadrilaterals from the end of the list."""

    def __init__(self):
        self._counts = Counter()

    def next(self, kind, picture):
        self._counts[kind, picture] += 1
        return self.current(kind, picture)

    def current(self, kind, picture):
        index = max(0, self._counts[kind, picture] - 1) % len(COLORS)
        return COLORS[index if kind == "box" else -1 - index]


def draw_on(reference, shapes, folders):
    """The picture with its boxes, at the size of the page; the error as text where it cannot be opened."""
    try:
        picture = open_picture(reference, search_dirs=folders)
    except PictureError as error:
        return str(error)
    longest = max(picture.size)
    wanted = min(LONGEST_SIDE, max(SHORTEST_LONG_SIDE, longest))
    size = tuple(max(1, round(side * wanted / longest)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.LANCZOS if wanted < longest else Image.Resampling.NEAREST)
    boxes = [
        {"box": shape.numbers} | ({} if shape.phrase is None else {"ref": shape.phrase})
        for shape in shapes
        if shape.kind == "box"
    ]
    return _draw_quads(draw_boxes(picture, boxes), [shape for shape in shapes if shape.kind == "quad"])


def _draw_quads(picture, quads):
    """The picture itself, with quadrilaterals drawn in the manner of `draw_boxes`."""
    draw, side = ImageDraw.Draw(picture), min(picture.size)
    width, height = picture.size
    for quad in quads:
        xs, ys = [x * width / GRID for x in quad.numbers[::2]], [y * height / GRID for y in quad.numbers[1::2]]
        draw.polygon(list(zip(xs, ys, strict=True)), outline=quad.color, width=max(2, round(side / 150)))
        if quad.phrase:
            place = (min(xs), min(ys), max(xs), max(ys))
            draw_label(draw, place, quad.phrase, quad.color, load_font(max(11, round(side / 24))), picture.size)
    return picture
