"""The list format of prompts, the boxes of an answer, and the image that they are drawn on."""

import warnings

import pytest
from helpers.images import is_color

from qwen_vl.model.box_drawing_qwen import COLORS


@pytest.fixture
def tokenizer(golden_tokenizer):
    return golden_tokenizer


def is_error(recorded):
    return isinstance(recorded, dict) and "error" in recorded


def test_list_format_equals_the_original(tokenizer, golden):
    for case in golden("list_format.json"):
        if is_error(case["i"]):
            with pytest.raises(ValueError, match="unsupported element"):
                tokenizer.from_list_format(case["list"])
            continue
        text = tokenizer.from_list_format(case["list"])
        assert text == case["i"]
        assert tokenizer.to_list_format(text) == case["i_to_list"]
        assert tokenizer.encode(text) == case["i_ids"]
    for case in golden("tokenizer_encode.json"):
        # Difference: the text may come from a model, so an unclosed tag or a control marker is text, not an error.
        if not is_error(case["list_format"]):
            assert tokenizer.to_list_format(case["text"]) == case["list_format"], case["text"]


def test_boxes_and_latest_image_equal_the_original(tokenizer, golden):
    for case in golden("boxes.json"):
        if "response" in case:
            assert tokenizer._fetch_latest_picture(case["response"], case["history"]) == case["latest_picture"]
        elif is_error(case["boxes"]):  # Difference: a malformed box is skipped, control markers are text
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                boxes = tokenizer._fetch_all_box_with_ref(case["text"])
            assert boxes == ([{"box": (1, 2, 3, 4)}] if "<|im_end|>" in case["text"] else []), case["text"]
        else:
            boxes = tokenizer._fetch_all_box_with_ref(case["text"])
            assert [{**box, "box": list(box["box"])} for box in boxes] == case["boxes"], case["text"]


def test_boxes_of_from_list_format_are_checked(tokenizer):
    for box in ([1, 2, 3, 4], [[1, 2, 3]], ["(1,2),(3,4)"]):
        with pytest.raises(ValueError, match="each \\[x1, y1, x2, y2\\]"):
            tokenizer.from_list_format([{"box": box}])


def test_answer_is_drawn_on_the_latest_image(tokenizer, in_golden_dir, tmp_path):
    history = [
        ("Picture 1: <img>images/photo.jpg</img>\nwhat?", "a car"),
        ("Picture 2: <img>images/exif_rotated6.jpg</img>\nand here?", "a dog"),
    ]
    answer = "<ref>dog</ref><box>(100,200),(600,800)</box>"
    drawn = tokenizer.draw_bbox_on_latest_picture(answer, history)
    assert drawn.size == (200, 100)  # the second image; EXIF orientation is ignored, as it is by the model
    assert is_color(drawn, COLORS[0])[80, 20:121].all()
    drawn.save(tmp_path / "drawn.jpg")
    alone = tokenizer.draw_bbox_on_latest_picture("<img>images/rgb.png</img>" + answer)
    assert alone.size == (64 * 5, 48 * 5)  # enlarged: it is small

    assert tokenizer.draw_bbox_on_latest_picture(answer) is None, "no image"
    assert tokenizer.draw_bbox_on_latest_picture("no box", history) is None
    with pytest.warns(UserWarning, match=r"1 of 1 boxes cannot be drawn, .* begins '<box>\(1,2\)</box>'"):
        assert tokenizer.draw_bbox_on_latest_picture("<box>(1,2)</box>", history) is None
    with pytest.raises(ValueError, match=r"missing\.png"):
        tokenizer.draw_bbox_on_latest_picture(answer, [("<img>missing.png</img>", "")])


def test_an_image_that_an_answer_names_is_not_opened(tokenizer, in_golden_dir):
    """Check that with a history the image comes from the user; without one, an invented image is skipped."""
    answer = "<img>images/photo.jpg</img><ref>dog</ref><box>(100,200),(600,800)</box><img>http://127.0.0.1:9/x</img>"
    shown = [("<img>images/exif_rotated6.jpg</img>\nwhat?", "<img>images/photo.jpg</img>"), ("where?", "")]
    assert tokenizer.draw_bbox_on_latest_picture(answer, shown).size == (200, 100)
    for history in ([("where?", "<img>images/photo.jpg</img>")], []):
        assert tokenizer.draw_bbox_on_latest_picture(answer, history) is None
    whole_text = f"<img>images/exif_rotated6.jpg</img>{answer.replace('images/photo', 'invented')}"
    assert tokenizer.draw_bbox_on_latest_picture(whole_text).size == (200, 100)
    with pytest.raises(ValueError, match=r"missing\.png"):
        tokenizer.draw_bbox_on_latest_picture(f"<img>missing.png</img>{whole_text[9:]}".replace("exif", "no"))
