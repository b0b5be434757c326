"""Boxes of an answer as data: pixels, labels, positions, and what is wrong with the others."""

import warnings

import pytest

from qwen_vl.checkpoint import loading
from qwen_vl.model.box_drawing_qwen import to_pixels
from qwen_vl.serving.grounding import grounding

SIZE = (640, 480)


def test_a_box_in_pixels_of_the_image():
    text = "在这里：<ref> 猫 </ref><box>(100,250),(500,999)</box>。"
    found = grounding(text, SIZE, image_number=2)
    start = text.index("<box>")
    assert found == {
        "picture": 2,
        "width": 640,
        "height": 480,
        "objects": [
            {
                "label": "猫",
                "box": [64.0, 120.0, 320.0, 479.52],
                "box_1000": [100, 250, 500, 999],
                "start": start,
                "end": text.index("。"),
            }
        ],
        "invalid": [],
    }
    assert text[start : found["objects"][0]["end"]] == "<box>(100,250),(500,999)</box>"


def test_labels_and_kinds():
    text = (
        "<box>(1,2),(3,4)</box> <ref>dogs</ref><box>(9,9),(5,5)</box><box>(1,1),(2,2)</box> <box>(3,3),(4,4)</box>"
        "<ref>page</ref><quad>(0,0),(999,0),(999,500),(0,500)</quad>"
    )
    objects = grounding(text, (1000, 2000), image_number=1)["objects"]
    assert [item["label"] for item in objects] == [None, "dogs", "dogs", None, "page"]
    assert objects[1]["box_1000"] == [5, 5, 9, 9] and objects[1]["box"] == [5.0, 10.0, 9.0, 18.0]
    assert objects[4]["quad"] == [0.0, 0.0, 999.0, 0.0, 999.0, 1000.0, 0.0, 1000.0]
    assert objects[4]["quad_1000"] == [0, 0, 999, 0, 999, 500, 0, 500] and "box" not in objects[4]


@pytest.mark.parametrize(
    "tag, reason",
    [
        ("<box>(0,0),(1000,10)</box>", "outside 0 to 999"),
        ("<box>(-1,0),(10,10)</box>", "outside 0 to 999"),
        ("<box>(1.5,0),(10,10)</box>", "whole numbers"),
        ("<box>(1,2),(3)</box>", "whole numbers"),
        ("<box></box>", "whole numbers"),
        ("<box>(١,2),(3,4)</box>", "whole numbers"),
        ("<box>(1,2),(3,4)</quad>", "not closed"),
        ("<box>(1,2)", "not closed"),
        ("<quad>(1,2),(3,4)</quad>", "8 whole numbers"),
        (f"<box>({'9' * 5000},2),(3,4)</box>", "whole numbers"),
    ],
)
def test_an_invalid_box_is_listed_and_hides_no_other(tag, reason):
    text = f"a<ref>x</ref>{tag}<box>(1,2),(3,4)</box>"
    found = grounding(text, SIZE, image_number=1)
    assert [item["box_1000"] for item in found["objects"]] == [[1, 2, 3, 4]]
    (invalid,) = found["invalid"]
    assert reason in invalid["reason"] and invalid["text"] == tag
    assert text[invalid["start"] : invalid["end"]] == tag


@pytest.mark.parametrize("text", ["", "a cat", "<ref>cat</ref>", "</box>(1,2),(3,4)"])
def test_no_box_no_grounding(text):
    assert grounding(text, SIZE, image_number=1) is None


def test_the_boxes_are_those_that_the_model_draws(make_checkpoint):
    tokenizer = loading.load_tokenizer(make_checkpoint())
    text = (
        "<ref>a</ref><box>(1,2),(3,4)</box> <box>( 10, 20),(30,40)</box><box>(5,6),(<box>7,8,9,10</box>"
        "<ref>b</ref> <box>(900,800),(100,0)</box><box>x</box>"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = tokenizer._fetch_all_box_with_ref(text)
    objects = grounding(text, SIZE, image_number=1)["objects"]
    assert len(drawn) == 4
    assert [tuple(int(value) for value in item["box"]) for item in objects] == [
        to_pixels(item["box"], SIZE) for item in drawn
    ]
    assert [item["label"] for item in objects] == ["a", None, None, None]
    assert [item.get("ref") for item in drawn] == ["a", None, None, None]
