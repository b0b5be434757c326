"""The boxes of an answer as data, in pixels of the image as it was sent."""

import re
from typing import Any, NamedTuple

from qwen_vl.data.validation import GRID

OPENING = re.compile(r"<(box|quad)>")
WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,9}\s*")
NUM_COORDINATES = {"box": 4, "quad": 8}
FORMS = {"box": "<box>(x1,y1),(x2,y2)</box>", "quad": "<quad>(x,y),(x,y),(x,y),(x,y)</quad>"}


class Tag(NamedTuple):
    """A box or quadrilateral as it is written. text[start:end] is its tag; `problem` says why it is invalid."""

    kind: str  # "box" or "quad"
    label: str | None
    numbers: tuple[int, ...]  # x, y, x, y ..; empty if they cannot be read
    start: int
    end: int
    problem: str = ""


def grounding(text: str, size: tuple[int, int], *, image_number: int) -> dict[str, Any] | None:
    """Return the boxes of an answer as `message.grounding`, None if it has no box.

    size: (width, height) in pixels of image `image_number` (from 1), the latest of the conversation, to which the boxes
    belong. "objects" lists the valid ones: "label" (None without a phrase), "box" [x1, y1, x2, y2] in pixels and
    "box_1000" as written, or "quad" and "quad_1000" with eight numbers, "start" and "end". A coordinate of n is at
    n / 1000 of the side, as for drawing; corners of a box are sorted. "invalid" lists the others with a "reason".
    `text[start:end]` is the tag of the box.
    """
    tags = find_tags(text)
    if not tags:
        return None
    return {
        "picture": image_number,
        "width": size[0],
        "height": size[1],
        "objects": [_object(tag, size) for tag in tags if not tag.problem],
        "invalid": [
            {"text": text[tag.start : tag.end], "reason": tag.problem, "start": tag.start, "end": tag.end}
            for tag in tags
            if tag.problem
        ],
    }


def find_tags(text: str) -> list[Tag]:
    """Return the boxes and quadrilaterals of a text in order, also those that are invalid.

    Boxes without anything between them share the phrase before the first.
    """
    tags: list[Tag] = []
    openings = [*OPENING.finditer(text)]
    for index, opening in enumerate(openings):
        kind, start = opening[1], opening.start()
        following = openings[index + 1].start() if index + 1 < len(openings) else len(text)
        label = _phrase_before(text, start)
        if label is None and tags and tags[-1].end == start:
            label = tags[-1].label
        close = text.find(f"</{kind}>", opening.end(), following)
        if close < 0:
            tags.append(Tag(kind, label, (), start, following, f"the tag is not closed; expected {FORMS[kind]}"))
            continue
        numbers = _numbers(text[opening.end() : close], NUM_COORDINATES[kind])
        end = close + len(f"</{kind}>")
        tags.append(Tag(kind, label, numbers, start, end, _problem(kind, numbers)))
    return tags


def _phrase_before(text: str, end: int) -> str | None:
    """Return the phrase whose tag ends right there, without outer white space; None without one."""
    if not text.endswith("</ref>", 0, end):
        return None
    close = end - len("</ref>")
    start = text.rfind("<ref>", 0, close)
    phrase = text[start + len("<ref>") : close]
    return None if start < 0 or re.search(r"</?(?:ref|box|quad|img)>", phrase) else phrase.strip()


def _numbers(content: str, count: int) -> tuple[int, ...]:
    """Return `count` whole numbers, none if the content is anything else. Reads what the model's drawing reads."""
    parts = content.replace("(", "").replace(")", "").split(",")
    if len(parts) != count or not all(WHOLE_NUMBER.fullmatch(part) for part in parts):
        return ()
    return tuple(int(part) for part in parts)


def _problem(kind: str, numbers: tuple[int, ...]) -> str:
    if not numbers:
        return f"not {NUM_COORDINATES[kind]} whole numbers; expected {FORMS[kind]}"
    if not all(0 <= number < GRID for number in numbers):
        return f"a coordinate is outside 0 to {GRID - 1}"
    return ""


def _object(tag: Tag, size: tuple[int, int]) -> dict[str, Any]:
    """Return a valid tag as an object of the response."""
    numbers = tag.numbers
    if tag.kind == "box":
        (left, right), (top, bottom) = sorted(numbers[::2]), sorted(numbers[1::2])
        numbers = (left, top, right, bottom)
    pixels = [round(number * size[place % 2] / GRID, 2) for place, number in enumerate(numbers)]
    return {
        "label": tag.label,
        tag.kind: pixels,
        f"{tag.kind}_{GRID}": [*numbers],
        "start": tag.start,
        "end": tag.end,
    }
