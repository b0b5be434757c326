"""Boxes matched one to one, and the share of first boxes."""

import random

import pytest

from qwen_vl.evaluation.metrics import first_box_share
from qwen_vl.evaluation.metrics.box_matching import match_boxes

LEFT, RIGHT, BOTH = (0, 0, 100, 100), (100, 0, 200, 100), (0, 0, 200, 100)


@pytest.mark.parametrize(
    "predicted, right, wanted",
    [
        ([LEFT, RIGHT], [RIGHT, LEFT], [1, 1]),
        ([BOTH], [LEFT, RIGHT], [0.5, 0]),  # one box for two: the first of the tied ones gets it
        ([LEFT, LEFT], [LEFT], [1]),
        ([(100, 100, 0, 0)], [LEFT], [1]),  # corners in any order
        ([LEFT, BOTH], [BOTH, LEFT], [1, 1]),  # the best pair first, whatever the order
        ([RIGHT], [LEFT], [0]),
        ([(5, 5, 5, 5)], [(5, 5, 5, 5)], [0]),  # no area
        ([], [LEFT], [0]),
        ([LEFT], [], []),
    ],
)
def test_each_box_is_given_once(predicted, right, wanted):
    assert match_boxes(predicted, right) == wanted


def test_order_does_not_matter_without_ties():
    rng = random.Random(0)
    for _ in range(50):
        predicted, right = ([tuple(rng.sample(range(1000), 4)) for _ in range(5)] for _ in "12")
        found = match_boxes(predicted, right)
        assert match_boxes(rng.sample(predicted, 5), right) == found
        assert sorted(match_boxes(predicted, rng.sample(right, 5))) == sorted(found)


def test_the_first_boxes_are_compared():
    right = "<ref>dog</ref><box>(0,0),(100,100)</box>"
    said = ["<box>(100,50),(0,0)</box>", "<box>(0,0),(100,49)</box>" + right, "no box", right]
    assert first_box_share([(text, right) for text in said]) == 0.5
    with pytest.raises(ValueError, match="has no <box>"):
        first_box_share([(right, "no box")])
