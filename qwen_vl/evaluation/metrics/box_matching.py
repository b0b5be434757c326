"""Boxes of an answer against the right ones, matched one to one."""

from collections.abc import Sequence

from qwen_vl.evaluation.metrics.boxes_and_words import Box, box_accuracy, iou

THRESHOLD = 0.5


def match_boxes(predicted: Sequence[Box], right: Sequence[Box]) -> list[float]:
    """Return the IoU of each right box with the predicted box that it was given, 0 if it was given none.

    Matching is greedy: of all pairs that are left, the one with the highest IoU; at a tie the one that is written
    first. Corners may be in any order.
    """
    overlaps = [(iou(box, other), i, j) for i, other in enumerate(right) for j, box in enumerate(predicted)]
    overlaps.sort(key=lambda overlap: (-overlap[0], overlap[1], overlap[2]))
    found, given = [0.0] * len(right), set()
    for value, i, j in overlaps:
        if value > 0 and not found[i] and j not in given:
            found[i] = value
            given.add(j)
    return found


def first_box_share(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the share of (prediction, answer) whose first box has an IoU of at least 0.5 with the answer's first box.

    Raise ValueError if there are no pairs, or an answer has no box.
    """
    return box_accuracy([prediction for prediction, _ in pairs], [answer for _, answer in pairs], THRESHOLD)
