"""Boxes: conversion between pixels and the grid of the data format, and their positions in a text (docs/data.md).

On the grid an image is 1000 steps wide and 1000 steps high. A pixel position belongs to the step that contains it
(rounded down; the far edge belongs to the last step). A step converts back to its center. So pixels -> grid -> pixels
moves a coordinate by at most half a step (width / 2000 pixels), and grid -> pixels -> grid changes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .validation import GRID

MARK = re.compile(r"<(img|ref|box|quad)>(.*?)</\1>", re.DOTALL)
NAMED_IMAGE = re.compile(r"(?:Picture|图片?) ?([0-9]{1,4})")
TOLERANCE = 1.0  # pixels by which a box may exceed its image, because some tools round


def to_grid(
    box: Sequence[float], width: float, height: float, *, tolerance: float | None = None
) -> tuple[int, int, int, int]:
    """Return the corners (x1, y1, x2, y2) in pixels as corners on the grid, whole numbers from 0 to 999.

    Raise ValueError if the box exceeds the image by more than `tolerance` pixels (None: TOLERANCE), or if its corners
    are swapped.
    """
    x1, y1, x2, y2 = box
    tolerance = TOLERANCE if tolerance is None else tolerance
    if x1 > x2 or y1 > y2:
        raise ValueError(f"box {_shown(box)} has its corners swapped; give x1, y1 (top left), x2, y2 (bottom right)")
    if min(x1, y1) < -tolerance or x2 > width + tolerance or y2 > height + tolerance:
        raise ValueError(
            f"box {_shown(box)} (x1, y1, x2, y2) exceeds its image of {width} x {height} pixels; correct the size, "
            "or check whether the box is written as two corners or as corner, width and height"
        )
    return _step(x1, width), _step(y1, height), _step(x2, width), _step(y2, height)


def to_pixels(box: Sequence[int], width: float, height: float) -> tuple[float, ...]:
    """Return the corners (x1, y1, x2, y2) on the grid in pixels: the center of each step."""
    return tuple((value + 0.5) * length / GRID for value, length in zip(box, (width, height) * 2, strict=True))


def _step(value: float, length: float) -> int:
    return min(GRID - 1, max(0, int(value * GRID / length)))


def _shown(box: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in box)


def box_text(box: Sequence[int]) -> str:
    """Return `<box>(x1,y1),(x2,y2)</box>` for four whole numbers on the grid."""
    x1, y1, x2, y2 = box
    return f"<box>({x1},{y1}),({x2},{y2})</box>"


def numbers(content: str) -> tuple[int, ...]:
    """Return the whole numbers between <box> and </box>, or <quad> and </quad>."""
    return tuple(int(number) for number in re.findall(r"-?[0-9]+", content))


@dataclass(frozen=True)
class Segment:
    """A piece of a turn. kind: "text", "img", "ref", "box" or "quad"; text: the content of the tags."""

    kind: str
    text: str
    image: int | None = None  # of an img, ref, box or quad: the index of its image, from 0


def segments(turns: Sequence[Mapping[str, Any]]) -> list[list[Segment]]:
    """Return the Segments of each turn, in reading order and without the tags.

    A box belongs to the last image that is named before it: by its tag, or as "Picture 2" ("图2") in the text.
    """
    images, parsed = 0, []
    named: int | None = None
    for turn in turns:
        pieces: list[Segment] = []
        position, text = 0, turn["value"]
        for match in MARK.finditer(text):
            if match.start() > position:
                pieces.append(Segment("text", text[position : match.start()]))
                named = _last_named(pieces[-1].text, images, named)
            if match[1] == "img":
                images, named = images + 1, images
            pieces.append(Segment(match[1], match[2], named))
            position = match.end()
        if position < len(text):
            pieces.append(Segment("text", text[position:]))
            named = _last_named(pieces[-1].text, images, named)
        parsed.append(pieces)
    return parsed


def _last_named(text: str, num_images: int, otherwise: int | None) -> int | None:
    """Return the index of the last image that a text names and that exists so far, or `otherwise`."""
    indices = [int(number) - 1 for number in NAMED_IMAGE.findall(text)]
    return next((index for index in reversed(indices) if 0 <= index < num_images), otherwise)
