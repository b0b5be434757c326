"""Boxes for expressions: RefCOCO, RefCOCO+, RefCOCOg and GRIT.

A record's fields have `bbox` (x1, y1, x2, y2 in pixels), `width` and `height` of the image.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from qwen_vl.evaluation.metrics.breakdown import mean_of, means_of_groups, text_of
from qwen_vl.evaluation.metrics.estimates import test_split
from qwen_vl.evaluation.metrics.result import Metric, Pair, Result, SampleScore

BOX = re.compile(r"\((.*?)\),\((.*?)\)")
GRID = 999  # the box coordinate that stands for the far edge of the image
NO_BOX = (0.0, 0.0, 0.0, 0.0)
SHARES = (0.3, 0.7, 0.9)
SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of an object's area in pixels

PixelBox = tuple[float, float, float, float]


def grounding_iou(answer: str, box: Sequence[float], width: float, height: float) -> float:
    """Return the IoU, 0 to 1, of the first box of an answer and the right `box` (x1, y1, x2, y2 in pixels).

    Coordinates of the answer are in thousandths (0 to 999) of `width` and `height`. Without a readable box, and for a
    box whose corners are in the wrong order, it is 0: corners are not sorted, the rule that made the published numbers.
    An answer is right if the IoU is at least 0.5.
    """
    return _iou(_pixels(_first_box(answer), width, height), box)


def _first_box(answer: str) -> PixelBox:
    """Return the numbers of the first box as they are written; four zeros if it cannot be read."""
    match = BOX.search(answer)
    corners = [corner.split(",") for corner in match.groups()] if match else []
    if [len(corner) for corner in corners] != [2, 2]:
        return NO_BOX
    try:
        x1, y1, x2, y2 = (float(number) for corner in corners for number in corner)
    except ValueError:  # words between the brackets are no box
        return NO_BOX
    return x1, y1, x2, y2


def _pixels(box: PixelBox, width: float, height: float) -> PixelBox:
    with np.errstate(over="ignore", invalid="ignore"):
        shares = np.asarray(box, dtype=np.float32) / np.float32(GRID)
        x1, y1, x2, y2 = (shares * np.asarray([width, height] * 2, dtype=np.float32)).tolist()
    return x1, y1, x2, y2


def _iou(predicted: Sequence[float], right: Sequence[float]) -> float:
    """Return the IoU in float32, corners taken as they are; 0 where it is not defined."""
    with np.errstate(all="ignore"):
        one, other = np.asarray(predicted, dtype=np.float32), np.asarray(right, dtype=np.float32)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
        sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), np.float32(0))
        common = sides[0] * sides[1]
        value = float(common / (areas[0] + areas[1] - common))
    return max(value, 0.0) if math.isfinite(value) else 0.0


def _coco_size(box: Sequence[float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return "size/small" if area < SMALL else "size/medium" if area < MEDIUM else "size/large"


def _integers(box: PixelBox) -> PixelBox:
    x1, y1, x2, y2 = (float(int(value)) if math.isfinite(value) else 0.0 for value in box)
    return x1, y1, x2, y2


def _refcoco_sample(pair: Pair) -> SampleScore:
    return _sample(pair, lambda box: box, lambda value: value >= 0.5)


def _grit_sample(pair: Pair) -> SampleScore:
    return _sample(pair, _integers, lambda value: value > 0.5)


def _sample(pair: Pair, finish: Callable[[PixelBox], PixelBox], is_right: Callable[[float], bool]) -> SampleScore:
    fields, text = pair.record.fields, text_of(pair)
    read = _first_box(text)
    box = finish(_pixels(read, fields["width"], fields["height"]))
    value = _iou(box, fields["bbox"])
    shown = [list(box)] if read != NO_BOX and all(map(math.isfinite, box)) else []
    extra = {"iou": value, "boxes": {"right": [[float(value) for value in fields["bbox"]]], "predicted": shown}}
    return SampleScore(pair.record.id, float(is_right(value)), text, unmatched=read == NO_BOX, extra=extra)


def _score(pairs: Sequence[Pair], title: str, rule: Callable[[Pair], SampleScore]) -> Result:
    _check(pairs, title)
    samples = [rule(pair) for pair in pairs]
    scores, ious = [sample.score for sample in samples], [sample.extra["iou"] for sample in samples]
    figures = {"accuracy": mean_of(pairs, scores), "mean IoU": mean_of(pairs, ious)}
    for share in SHARES:
        figures[f"IoU >= {share}"] = mean_of(pairs, [float(value >= share) for value in ious])
    figures["answers without a box"] = mean_of(pairs, [float(sample.unmatched) for sample in samples])
    sizes = [_coco_size(pair.record.fields["bbox"]) for pair in pairs]
    figures |= means_of_groups(pairs, scores, sizes, first=("size/small", "size/medium", "size/large"))
    return Result("accuracy", figures, samples)


def _check(pairs: Sequence[Pair], title: str) -> None:
    if not pairs:
        raise ValueError(f"{title}: no answered records to score; answer at least one")
    without = [pair.record.id for pair in pairs if "bbox" not in pair.record.fields]
    if without:
        raise test_split(title, without)


def _score_refcoco(pairs: Sequence[Pair]) -> Result:
    return _score(pairs, "Grounding", _refcoco_sample)


def _score_grit(pairs: Sequence[Pair]) -> Result:
    return _score(pairs, "GRIT", _grit_sample)


GROUNDING = Metric("share of answers whose first box has IoU >= 0.5", _score_refcoco)
GRIT = Metric("share of answers whose first box, in whole pixels, has IoU > 0.5", _score_grit)
