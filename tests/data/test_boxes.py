"""Boxes: pixels to the grid and back within half a step, and the image that each box belongs to."""

import random

import pytest
from helpers.records import turns_of

from qwen_vl.data.boxes import numbers, segments, to_grid, to_pixels


def test_pixels_to_grid_and_back_within_half_a_step():
    """Keep the bound that docs/data.md states. Grid -> pixels -> grid changes nothing."""
    generator = random.Random(0)
    for width, height in [(1, 1), (7, 3000), (640, 480), (999, 1000), (1001, 4096)]:
        corners = [0, width, width / 2, *(generator.uniform(0, width) for _ in range(200))]
        for x in corners:
            x1, _, x2, _ = to_pixels(to_grid((x, 0, width, height), width, height), width, height)
            assert abs(x1 - x) <= width / 2000 * (1 + 1e-9) and abs(x2 - width) <= width / 2000 * (1 + 1e-9)
        for step in range(1000):
            box = (step, step, step, step)
            pixels = to_pixels(box, width, height)
            assert to_grid(pixels, width, height) == box
            if min(width, height) >= 20:  # as COCO's files are written
                assert to_grid([round(value, 2) for value in pixels], width, height) == box
    assert to_grid((0, 0, 640, 480), 640, 480) == (0, 0, 999, 999)
    assert to_grid((0.64, 0.479, 320, 240), 640, 480) == (1, 0, 500, 500)
    assert to_grid((-0.9, -1, 640.5, 481), 640, 480) == (0, 0, 999, 999)


@pytest.mark.parametrize("box", [(0, 0, 642, 5), (-2, 0, 5, 5), (5, 0, 4, 5), (0, 5, 5, 4), (600, 0, 700, 9)])
def test_a_box_that_cannot_be_right_is_an_error(box):
    with pytest.raises(ValueError, match=r"swapped|exceeds its image of 640 x 480 pixels"):
        to_grid(box, 640, 480)


def test_which_image_a_box_belongs_to():
    turns = turns_of(
        "Picture 1: <img>a</img>\nPicture 2: <img>b</img>\nCompare Picture 1 and Picture 9.",
        "<box>(0,0),(1,1)</box>",
        "图2？ <ref>x</ref>",
        "<box>(1,2),(3,4)</box> as in Picture 1: <quad>(0,0),(0,0),(0,0),(0,0)</quad>",
        "<img>c</img>",
        "<ref>y</ref><box>(5,6),(7,8)</box>",
    )
    found = [(piece.kind, piece.image) for pieces in segments(turns) for piece in pieces if piece.kind != "text"]
    assert found == [
        ("img", 0), ("img", 1), ("box", 0), ("ref", 1), ("box", 1), ("quad", 0), ("img", 2), ("ref", 2), ("box", 2),
    ]  # fmt: skip
    assert numbers("(1,2),(3,4)") == (1, 2, 3, 4)
    for turn, pieces in zip(turns, segments(turns), strict=True):  # nothing is lost
        text = "".join(p.text if p.kind == "text" else f"<{p.kind}>{p.text}</{p.kind}>" for p in pieces)
        assert text == turn["value"]
