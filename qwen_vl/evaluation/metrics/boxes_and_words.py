"""Scores of predicted answers against right ones: exact match for short answers, IoU for boxes."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

NUMBER = r"(\d{1,9})"  # a model may write thousands of digits, more than int() accepts
BOX = re.compile(rf"<box>\({NUMBER},{NUMBER}\),\({NUMBER},{NUMBER}\)</box>")

Box = tuple[int, int, int, int]  # x1, y1, x2, y2


def share_that_agree(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of predictions that say the answer: equal but for case, outer white space and a final period."""
    pairs = list(zip(predictions, answers, strict=True))
    return _share(_normal(prediction) == _normal(answer) for prediction, answer in pairs)


def box_accuracy(predictions: Sequence[str], answers: Sequence[str], threshold: float = 0.5) -> float:
    """Return the share of predictions whose first box overlaps that of the answer with an IoU of at least `threshold`.

    A prediction without a well-formed box is wrong. Raise ValueError for an answer without one.
    """
    right = []
    for prediction, answer in zip(predictions, answers, strict=True):
        wanted, found = find_boxes(answer), find_boxes(prediction)
        if not wanted:
            raise ValueError(f"answer {answer!r} has no <box>(x1,y1),(x2,y2)</box>; score it with share_that_agree")
        right.append(bool(found) and iou(found[0], wanted[0]) >= threshold)
    return _share(right)


def find_boxes(text: str) -> list[Box]:
    """Return all boxes (x1, y1, x2, y2) of a text, in order, as they are written."""
    found = [[int(number) for number in match.groups()] for match in BOX.finditer(text)]
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in found]


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes, corners in any order; 0 if neither has an area."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _ordered(one), _ordered(other)
    common = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    return common / union if union else 0.0


def _ordered(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().rstrip(".。").rstrip().casefold()


def _share(right: Iterable[bool]) -> float:
    verdicts = list(right)
    if not verdicts:
        raise ValueError("no answers to score; give at least one")
    return sum(verdicts) / len(verdicts)
