"""Boxes of RefCOCO and GRIT: the rule of the published numbers, to the character."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics import grounding_iou
from qwen_vl.evaluation.metrics.grounding import GRIT, GROUNDING

BOX = [0, 0, 100, 100]


@pytest.mark.parametrize(
    "answer, wanted",
    [
        ("(0,0),(100,100)", 1.0),
        ("<ref>dog</ref><box>(0,0),(100,50)</box>", 0.5),
        ("dog(0,0),(100,25)(0,0),(100,100)", 0.25),  # the first one counts
        ("( 0, 0.0),(1e2,50.0)", 0.5),  # whatever float() takes
        ("(100,100),(0,0)", 0.0),  # corners are not sorted
        ("(100,0),(0,100)", 0.0),
        ("(0,0),(100)", 0.0),
        ("(0,0,5),(100,100)", 0.0),
        ("(a,b),(c,d)", 0.0),
        ("((0,0),(100,100)", 0.0),  # the match starts at the first bracket
        ("(0,0), (100,100)", 0.0),
        ("(0,0),\n(100,100)", 0.0),
        ("(nan,0),(100,100)", 0.0),
        (f"(0,0),({'9' * 5000},100)", 0.0),
        ("", 0.0),
    ],
)
def test_the_first_box_is_read_as_it_is_written(answer, wanted):
    assert grounding_iou(answer, BOX, 999, 999) == pytest.approx(wanted, abs=1e-7)


def test_coordinates_are_thousandths_up_to_999():
    assert grounding_iou("(0,0),(999,999)", [0, 0, 640, 480], 640, 480) == 1.0
    assert grounding_iou("(0,0),(500,999)", [0, 0, 640, 480], 640, 480) == pytest.approx(500 / 999, abs=1e-6)


def test_exactly_one_half_is_right_for_refcoco_and_wrong_for_grit():
    fields = {"bbox": BOX, "width": 999, "height": 999}
    half = [pair("(0,0),(100,50)", (), image="a", **fields)]
    assert GROUNDING.score(half).figures["accuracy"].value == 100
    assert GRIT.score(half).figures["accuracy"].value == 0


def test_grit_compares_boxes_in_whole_pixels():
    fields = {"bbox": [0, 0, 10, 10], "width": 100, "height": 100}
    answered = [pair("(0,0),(99,59)", (), image="a", **fields)]  # 9.91 x 5.91 pixels: 9 x 5 as integers
    assert GROUNDING.score(answered).figures["accuracy"].value == 100
    (sample,) = GRIT.score(answered).samples
    assert (sample.score, sample.extra["iou"]) == (0, pytest.approx(0.45))
    assert sample.extra["boxes"] == {"right": [[0, 0, 10, 10]], "predicted": [[0, 0, 9, 5]]}


def test_figures_beside_the_accuracy():
    answers = ["(0,0),(999,999)", "(0,0),(999,750)", "(0,0),(999,320)", "no box"]
    sizes = [20, 60, 200, 200]
    pairs = [
        pair(answer, (), id=str(i), image=f"image {i // 2}", bbox=[0, 0, size, size], width=size, height=size)
        for i, (answer, size) in enumerate(zip(answers, sizes, strict=True))
    ]
    result = GROUNDING.score(pairs)
    values = {name: figure.value for name, figure in result.figures.items()}
    assert values == pytest.approx(
        {
            "accuracy": 50,
            "mean IoU": 100 * (1 + 750 / 999 + 320 / 999) / 4,
            "IoU >= 0.3": 75,
            "IoU >= 0.7": 50,
            "IoU >= 0.9": 25,
            "answers without a box": 25,
            "size/small": 100,
            "size/medium": 100,
            "size/large": 0,
        },
        abs=1e-4,
    )
    assert [sample.unmatched for sample in result.samples] == [False, False, False, True]
    assert result.figures["accuracy"].standard_error == pytest.approx(100 * (2 * 1.0**2) ** 0.5 / 4)  # two images
    random.Random(0).shuffle(pairs)
    assert GROUNDING.score(pairs).figures == result.figures


def test_a_test_split_is_refused():
    with pytest.raises(ValueError, match=r"1 records have no right answer, the first is '7'; a test split"):
        GRIT.score([pair("(0,0),(1,1)", (), id="7", width=5, height=5)])
    with pytest.raises(ValueError, match="no answered records"):
        GROUNDING.score([])
